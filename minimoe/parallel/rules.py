"""Which part of which array is on which device: a table from the names of parameters to axes of the mesh.

A rule is a pattern, searched for in the name of an array, and one entry for each of its axes: the mesh axis that splits
it, or None. The first rule that is found decides; what no rule names is on every device, whole. Optimiser moments are
called like their parameters, so the rules hold for them too; `zero_spec` then splits them further.

Only `RULES` says where things are. The compiler derives from it what must be sent, and sends it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minimoe.errors import UserError
from minimoe.model.paths import filled_state, named_leaves
from minimoe.parallel.mesh import BATCH_AXES, AnyMesh, axis_size

Rules = Sequence[tuple[str, P]]
Node = TypeVar("Node")

RULES: Rules = (
    # [E, D, 2F] and [E, F, D]: whole experts. Each is small, so the tensor axis does not cut them: see `experts`.
    (r"experts\.(gate_up_proj|down_proj)$", P("expert")),
    (r"embed\.embedding$", P("tensor", None)),  # [V, D], rows of the vocabulary
    (r"head\.kernel$", P(None, "tensor")),  # [D, V]
    # Columns are heads, or hidden units: each device computes its own. Rows gather them again, one sum a layer.
    (r"attention\.(q_proj|k_proj|v_proj|q_b_proj|kv_b_proj)\.kernel$", P(None, "tensor")),
    (r"attention\.(q_proj|k_proj|v_proj)\.bias$", P("tensor")),
    (r"attention\.o_proj\.kernel$", P("tensor", None)),
    # [D, 2F]: the gates are on other devices than the values that they meet, so half of the hidden units travel.
    (r"(shared|ffn)\.gate_up_proj\.kernel$", P(None, "tensor")),
    (r"(shared|ffn)\.down_proj\.kernel$", P("tensor", None)),
)


def spec_for(name: str, rules: Rules = RULES) -> P:
    """The axes that split an array, by its name.

    Example:
      >>> names = ("layers.0.ffn.experts.down_proj", "layers.0.attention.o_proj.kernel", "norm.scale")
      >>> [tuple(spec_for(name)) for name in names]
      [('expert',), ('tensor', None), ()]
    """
    return next((spec for pattern, spec in rules if re.search(pattern, name)), P())


def zero_spec(spec: P, shape: Sequence[int], mesh: AnyMesh) -> P:
    """``spec`` with one more axis of the array split, over the mesh axes whose devices hold the same weights.

    Devices along ``data`` hold equal weights, and those along ``expert`` too where no expert is concerned. Each needs
    the moments only of the part that it updates; the updates, not the moments, are then gathered. An array without a
    divisible axis stays as it is, and so do vectors: they are small, and a split gradient of a norm's scale makes the
    compiler split the activations that it comes from.

    Example:
      >>> tuple(zero_spec(P("expert"), (8, 16, 32), make_mesh("data=1")))
      ('expert', 'data', None)

    References:
      Rajbhandari et al., `ZeRO <https://arxiv.org/abs/1910.02054>`_, section 5.1: the first stage.
    """
    if len(shape) < 2:
        return spec
    entries = [*spec, *(None,) * (len(shape) - len(spec))]
    free = tuple(axis for axis in BATCH_AXES if axis not in entries)
    for axes in (free, ("data",)):
        for i, entry in enumerate(entries):
            if entry is None and shape[i] % axis_size(mesh, *axes) == 0 and shape[i] >= axis_size(mesh, *axes):
                return P(*entries[:i], axes[0] if len(axes) == 1 else axes, *entries[i + 1 :])
    return spec


def shardings(node: Any, mesh: Mesh, *, zero: bool = False, rules: Rules = RULES) -> dict[str, NamedSharding]:
    """Where every array of a module or a state is to be, by its name.

    Args:
      node: a model, an optimiser, or a state of either. zero: split by `zero_spec` too.

    Raises:
      UserError: for an axis of an array that its rule cannot split, naming both.
    """
    return {name: _sharding(name, leaf, mesh, zero, rules) for name, leaf in named_leaves(node).items()}


def _sharding(name: str, leaf: Any, mesh: Mesh, zero: bool, rules: Rules) -> NamedSharding:
    spec = spec_for(name, rules) if leaf.ndim else P()
    for axis, size in zip(spec, leaf.shape, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            found = f"mesh axis {axis}={mesh.shape[axis]} does not divide an axis of {name}, {list(leaf.shape)}"
            raise UserError(f"{found}; make {axis} a divisor of {size}")
    return NamedSharding(mesh, zero_spec(spec, leaf.shape, mesh) if zero and leaf.ndim else spec)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of a batch ``[B, ...]``: its sequences, split over the axes data and expert."""
    return NamedSharding(mesh, P(BATCH_AXES))


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """A whole array, equal in all processes, laid out over devices; each process gives its own devices their parts."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def shard_model(model: Node, mesh: Mesh, *, rules: Rules = RULES) -> Node:
    """The same module with its arrays laid out over the mesh; it is changed in place and returned.

    Its layers compute what they did. For experts that are exchanged between devices, see `on_mesh`.

    Example:
      >>> layer = shard_model(MoELayer(MoEConfig(8, 8, 4, 2), rngs=nnx.Rngs(0)), make_mesh("data=1"))
      >>> tuple(layer.experts.down_proj.sharding.spec)
      ('expert',)
    """
    return _lay_out(model, mesh, False, rules)


def shard_state(optimizer: nnx.Optimizer, mesh: Mesh, *, zero: bool = True, rules: Rules = RULES) -> nnx.Optimizer:
    """The optimiser with its moments laid out over the mesh, split by `zero_spec` too unless ``zero`` is False.

    Its updates keep moments and parameters where they are (see `pinned`). Changed in place and returned.
    """
    optimizer.tx = pinned(optimizer.tx, mesh, zero=zero, rules=tuple(rules))
    return _lay_out(optimizer, mesh, zero, rules)


def _lay_out(node: Node, mesh: Mesh, zero: bool, rules: Rules) -> Node:
    where = shardings(node, mesh, zero=zero, rules=rules)
    nnx.update(node, filled_state(nnx.state(node), lambda name, leaf: leaf.replace(put(leaf[...], where[name]))))
    return node


@functools.cache  # equal ones share one object, so that a step compiled for one serves the other
def pinned(
    inner: optax.GradientTransformation, mesh: Mesh, *, zero: bool = True, rules: Rules = RULES
) -> optax.GradientTransformation:
    """``inner``, whose state stays split as `shard_state` says, and whose updates are laid out like the parameters.

    Without it the compiler would be free to leave the parameters split as the moments are.
    """

    def held(tree: Any, zero: bool) -> Any:
        def hold(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return jax.lax.with_sharding_constraint(leaf, _sharding(name, leaf, mesh, zero, rules))

        return jax.tree_util.tree_map_with_path(hold, tree)

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(held(gradients, zero), state, params)
        return held(updates, False), held(state, zero)

    return optax.GradientTransformation(inner.init, update)


def gathered(node: Any) -> Any:
    """A copy of a module or state with whole arrays on this process's first device. All processes must call it."""
    device = jax.local_devices()[0]

    def whole(array: Any) -> Any:
        if not array.is_fully_addressable:
            from jax.experimental.multihost_utils import process_allgather

            array = process_allgather(array, tiled=True)
        return jax.device_put(np.asarray(array), device)

    if isinstance(node, nnx.Pytree) and not isinstance(node, nnx.State):
        graphdef, state = nnx.split(node)
        return nnx.merge(graphdef, gathered(state))
    return jax.tree.map(whole, node)
