"""Expert parallelism: each device holds some of the experts, and tokens travel to them and back.

Axes: T tokens, t = T / devices of one device, D model width, K experts per token, E experts, e = E / N on one device, F
expert hidden width (F2 = 2*F), N devices along the mesh axis ``expert``, R rows that one device sends to one other in a
round.

    1  a token goes once to every device that holds one of its experts, whatever their number there
    2  all_to_all: R rows to each of N devices, with the ids of the experts that are meant and their weights
    3  each device computes its own experts, exactly (`minimoe.moe.dropless`), and adds up what one token gets of them
    4  all_to_all back, and a sum over the devices

Shapes are static, loads are not. So what does not fit in R rows travels in a further round; how many rounds there are is
known once all devices have counted, and is the same on all of them. Two choices of R:

    rows="mean"   R is the mean over devices, and a quarter more. Balanced routing takes one round. A router that sends all
                  tokens to one device takes about N / K of them. A round that is not full sends zeros.
    rows="all"    R = t: one round always, whatever the routing. It sends N rows a token where about K are needed.

Nothing is dropped. With ``dispatch="capacity"`` the same assignments are dropped as on one device: positions in an
expert's queue are counted over all devices. (Most frameworks count them on each device alone, which drops others.)

The axis ``tensor`` does not cut experts: along it, too, devices take different tokens.

References:
  Lepikhin et al., `GShard <https://arxiv.org/abs/2006.16668>`_, section 3.2; DeepSeek-AI, `DeepSeek-V3
  <https://arxiv.org/abs/2412.19437>`_, section 2.1.2, where a token goes to at most four machines.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from minimoe.checks import choice
from minimoe.config import MoEConfig
from minimoe.errors import UserError
from minimoe.moe import Experts, sparse_layers
from minimoe.moe.dropless import dropless_experts
from minimoe.moe.pairs import one_hot_experts
from minimoe.parallel.mesh import AXES, BATCH_AXES, axis_size, check_moe
from minimoe.parallel.reach import rows_per_device

Node = TypeVar("Node")
ROWS = ("mean", "all")


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What one device needs to know of the exchange; all static.

    Attributes:
      devices: N. rows: R. held: e. limit: of SwiGLU.
      expected: assignments that reach one device, on average.
    """

    devices: int
    rows: int
    held: int
    expected: int
    limit: float | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queue:
    """Where the tokens of one device go.

    Attributes:
      place: of each token in the queue for each device, ``[t, N]``; -1 where it does not go.
      rounds: that all devices need, a scalar.
    """

    place: Int[Array, "t N"]
    rounds: Int[Array, ""]


def make_queue(experts: Int[Array, "t K"], used: Bool[Array, "t K"], exchange: Exchange) -> Queue:
    """Lines the tokens up for each device, in their order; inside `jax.shard_map`."""
    goes = (one_hot_experts(experts // exchange.held, exchange.devices) & used[:, :, None]).any(axis=1)  # [t, N]
    place = jnp.cumsum(goes.astype(jnp.int32), axis=0) - 1
    longest = jax.lax.pmax(goes.sum(axis=0, dtype=jnp.int32).max(), AXES)
    return Queue(jnp.where(goes, place, -1), (longest + exchange.rows - 1) // exchange.rows)


def one_round(exchange: Exchange, queue: Queue, experts, used, index, x, weights, gate_up, down) -> Float[Array, "t D"]:
    """Sends the tokens at places ``index*R .. (index+1)*R - 1`` of every queue; what they get back, zeros for the others."""
    tokens, rows = x.shape[0], exchange.rows
    place = queue.place - index * rows  # [t, N]
    place = jnp.where((queue.place >= 0) & (place >= 0) & (place < rows), place, rows)
    device = jnp.arange(exchange.devices, dtype=jnp.int32)
    owner = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[:, None], place.shape)
    token = jnp.full((exchange.devices, rows), tokens, jnp.int32).at[device, place].set(owner, mode="drop")  # [N, R]

    ids = experts.at[token].get(mode="fill", fill_value=-1)  # [N, R, K]
    meant = (ids // exchange.held == device[:, None, None]) & used.at[token].get(mode="fill", fill_value=False)
    ids = jnp.where(meant, ids - device[:, None, None] * exchange.held, exchange.held)  # e: nobody computes it
    scale = jnp.where(meant, weights.at[token].get(mode="fill", fill_value=0), 0)
    sent = (x.at[token].get(mode="fill", fill_value=0), ids, scale)
    came, ids, scale = (_swap(array).reshape(-1, array.shape[-1]) for array in sent)  # [N*R, D], [N*R, K] twice

    y = dropless_experts(came, ids, scale, gate_up, down, exchange.limit, exchange.expected)
    back = _swap(y.reshape(exchange.devices, rows, -1))  # [N, R, D]
    picked = back.at[device, place].get(mode="fill", fill_value=0)  # [t, N, D]
    return picked.astype(jnp.float32).sum(axis=1).astype(x.dtype)


def _swap(array: Array) -> Array:
    """Row d of the result is what device d had in its row for us."""
    return jax.lax.all_to_all(array, "expert", split_axis=0, concat_axis=0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def exchanged_experts(exchange: Exchange, experts, used, x, weights, gate_up, down) -> Float[Array, "t D"]:
    """All rounds. The number of turns of the loop is known at run time only, so its gradient is written here.

    The first round keeps its activations; further ones are computed again in the backward pass.
    """
    return _forward(exchange, experts, used, x, weights, gate_up, down)[0]


def _forward(exchange, experts, used, x, weights, gate_up, down):
    queue = make_queue(experts, used, exchange)
    args = (x, weights, gate_up, down)
    y, first = jax.vjp(functools.partial(one_round, exchange, queue, experts, used, jnp.int32(0)), *args)
    if exchange.rows < x.shape[0]:

        def add_round(index, y):
            return y + one_round(exchange, queue, experts, used, index, *args)

        y = jax.lax.fori_loop(1, queue.rounds, add_round, y)
    return y, (queue, experts, used, args, first)


def _backward(exchange, residuals, dy):
    queue, experts, used, args, first = residuals
    grads = first(dy)
    if exchange.rows < args[0].shape[0]:

        def add_round(index, grads):
            _, back = jax.vjp(functools.partial(one_round, exchange, queue, experts, used, index), *args)
            return jax.tree.map(jnp.add, grads, back(dy))

        grads = jax.lax.fori_loop(1, queue.rounds, add_round, grads)
    nothing = (np.zeros(array.shape, jax.dtypes.float0) for array in (experts, used))
    return (*nothing, *grads)


exchanged_experts.defvjp(_forward, _backward)


def kept_over_all(
    experts: Int[Array, "t K"], used: Bool[Array, "t K"], num_experts: int, capacity: int
) -> Bool[Array, "t K"]:
    """Which assignments find one of ``capacity`` slots of their expert, over all devices; inside `jax.shard_map`.

    GShard's order, as in `minimoe.moe.capacity`: first choices of all tokens, then second ones; earlier tokens first.
    """
    asks = one_hot_experts(experts, num_experts) & used[:, :, None]  # [t, K, E]
    here = asks.astype(jnp.int32)
    counts = jax.lax.all_gather(here.sum(axis=0), AXES)  # [devices, K, E]
    rank = jax.lax.axis_index(AXES)
    by_choice = counts.sum(axis=0)
    earlier = jnp.cumsum(by_choice, axis=0) - by_choice  # choices before this one, of all devices
    earlier += jnp.where(jnp.arange(counts.shape[0])[:, None, None] < rank, counts, 0).sum(axis=0)
    place = jnp.cumsum(here, axis=0) - here + earlier  # [t, K, E]
    return used & (jnp.take_along_axis(place, experts[:, :, None], axis=2)[:, :, 0] < capacity)


class MeshExperts(Experts):
    """The `Experts` of a layer, dealt out over a mesh; the same parameters under the same names.

    Args:
      experts: whose arrays to take. config: of the layer. mesh: from `make_mesh`. rows: "mean" or "all".
    """

    def __init__(self, experts: Experts, config: MoEConfig, mesh: Mesh, rows: str = "mean"):
        choice("rows", rows, ROWS)
        check_moe(config, mesh)
        self.dtype, self.limit = experts.dtype, experts.limit
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj
        self.config, self.mesh, self.rows = config, mesh, rows

    def __call__(
        self,
        x: Float[Array, "T D"],
        experts: Int[Array, "T K"],
        weights: Float[Array, "T K"],
        *,
        dispatch: str,
        capacity: int | None = None,
        used: Bool[Array, "T K"] | None = None,
    ) -> Float[Array, "T D"]:
        """As `Experts`. Any ``dispatch`` that drops nothing is one here."""
        tokens, dtype = x.shape[0], jnp.dtype(self.dtype)
        everywhere = P(AXES)
        used = jnp.ones(experts.shape, bool) if used is None else used
        more = -tokens % axis_size(self.mesh, *AXES)  # a few tokens that nobody computes, so that all get equally many
        by_token = (x.astype(dtype), experts, weights.astype(dtype), used)
        each = [self._by_sequence(jnp.pad(array, ((0, more), (0, 0)))) for array in by_token]
        limit = capacity if dispatch == "capacity" else None
        on_one = functools.partial(self._on_one, self._exchange(tokens + more), limit)
        specs = (everywhere,) * 4 + (P("expert"),) * 2
        run = jax.shard_map(on_one, mesh=self.mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
        each += [self.gate_up_proj[...].astype(dtype), self.down_proj[...].astype(dtype)]
        return self._by_sequence(run(*each))[:tokens]

    def _by_sequence(self, x: Array) -> Array:
        """``[T, ...]`` split as the batch is: the axis tensor splits tokens in here, and nowhere else."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(BATCH_AXES)))

    def _exchange(self, tokens: int) -> Exchange:
        devices, here = self.mesh.shape["expert"], tokens // axis_size(self.mesh, *AXES)
        rows = here if self.rows == "all" else rows_per_device(self.config, devices, here)
        each = self.config.top_k * (self.config.capacity_factor if self.config.facts.counts_slots else 1)
        expected = math.ceil(here * min(each, self.config.num_experts))
        return Exchange(devices, rows, self.config.num_experts // devices, expected, self.limit)

    def _on_one(self, exchange, capacity, x, experts, weights, used, gate_up, down):
        if capacity is not None:
            used = kept_over_all(experts, used, self.config.num_experts, capacity)
        return exchanged_experts(exchange, experts, used, x, weights, gate_up, down)


def on_mesh(model: Node, mesh: Mesh, *, rows: str = "mean") -> Node:
    """The same module with the experts of its `MoELayer`s exchanged between devices; changed in place and returned.

    Its arrays stay where they are: `shard_model` lays them out.

    Args:
      model: a layer, a model, or a module of yours around them. mesh: from `make_mesh`.
      rows: that one device sends to another in a round, "mean" or "all"; see the module's docstring.

    Raises:
      UserError: if the axis ``expert`` does not divide the number of experts, or a layer's experts are of another kind,
        say quantized ones.

    Example:
      >>> mesh = make_mesh("data=1")
      >>> layer = shard_model(on_mesh(MoELayer(MoEConfig(8, 8, 4, 2), rngs=nnx.Rngs(0)), mesh), mesh)
      >>> jax.jit(lambda layer, x: layer(x)[0])(layer, jnp.ones((6, 8))).shape
      (6, 8)
    """
    for layer in sparse_layers(model):
        if type(layer.experts) not in (Experts, MeshExperts):
            kind = type(layer.experts).__name__
            raise UserError(f"experts of kind {kind} cannot be dealt out over a mesh; use a model of plain floats")
        layer.experts = MeshExperts(layer.experts, layer.config, mesh, rows)
    return model


def off_mesh(model: Node) -> Node:
    """Undoes `on_mesh`, in place: the model again computes on the device where its arrays are."""
    for layer in sparse_layers(model):
        if isinstance(layer.experts, MeshExperts):
            spread = layer.experts
            layer.experts = nnx.eval_shape(lambda config=spread.config: Experts(config, rngs=nnx.Rngs(0)))
            layer.experts.gate_up_proj, layer.experts.down_proj = spread.gate_up_proj, spread.down_proj
    return model
