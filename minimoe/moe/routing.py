"""Routing: from router logits to the experts of each token. Axes: T tokens, D model width, E experts, K per token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import MoEConfig
from minimoe.errors import UserError
from minimoe.layers import as_mask, fan_in
from minimoe.layers.token_ids import TokenIds, as_token_ids, known_ids
from minimoe.moe.pairs import one_hot_experts, row_shares
from minimoe.moe.selectors import SELECTORS, make_hash_table, noisy_logits

_LOW = -15.0  # below it softplus(x) is exp(x), to the last bit of float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Which token uses which experts in one layer, and with what weight.

    Under expert choice K is E, every row of ``experts`` is 0..E-1, and pairs that were not chosen weigh 0.

    Attributes:
      experts: chosen ids ``[T, K]`` int32, best selection score first; ties go to the lower id.
      weights: combine weights ``[T, K]`` float32, from affinities without the bias; 0 for pairs that are not used.
      used: which pairs count ``[T, K]`` bool: False for masked tokens, and for what expert choice did not choose.
      probs: affinities ``[T, E]`` float32.
      logits: router logits ``[T, E]`` float32, with their noise if there was any.
      load: assignments per expert ``[E]`` float32 counts, before any are dropped; masked tokens are not counted.
      dropped: share of assignments that found no slot, a float32 scalar in [0, 1]; 0 for exact dispatches.
    """

    experts: Int[Array, "T K"]
    weights: Float[Array, "T K"]
    used: Bool[Array, "T K"]
    probs: Float[Array, "T E"]
    logits: Float[Array, "T E"]
    load: Float[Array, "E"]
    dropped: Float[Array, ""]


class RouterBias(nnx.Variable):
    """Selection bias ``[E]`` of loss-free balancing. Not a Param: no gradient reaches it (see `balance.bias_update`)."""


class HashTable(nnx.Variable):
    """Experts by token id, ``[V, K]`` int32. Not a Param: it is drawn once and never changes."""


def softmax_affinity(logits: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """Softmax over experts: rows sum to 1 (Switch, Mixtral, OLMoE). Infinite logits count as the largest finite one."""
    return jax.nn.softmax(_finite(logits), axis=-1)


def sigmoid_affinity(logits: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """Each expert judged alone, in (0, 1) (DeepSeek-V3 eq. 15, GLM-4.5)."""
    return jax.nn.sigmoid(logits)


def sqrtsoftplus_affinity(logits: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """``sqrt(log(1 + exp(logit)))``, in (0, inf) (DeepSeek-V4 section 2.1).

    Near ``sqrt(x)`` far above zero and ``exp(x/2)`` far below, which is how it is computed below -15: the derivative of
    the square root would be 0/0 where softplus underflows.
    """
    logits = _finite(logits)
    low = logits < _LOW
    near = jnp.sqrt(jax.nn.softplus(jnp.where(low, 0.0, logits)))
    return jnp.where(low, jnp.exp(jnp.where(low, logits, 0.0) / 2), near)


AFFINITIES: dict[str, Callable[[Float[Array, "T E"]], Float[Array, "T E"]]] = {
    "softmax": softmax_affinity,
    "sigmoid": sigmoid_affinity,
    "sqrtsoftplus": sqrtsoftplus_affinity,
}


def _finite(logits: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Infinities held at the largest finite number, so that their differences are numbers."""
    largest = jnp.finfo(logits.dtype).max
    return jnp.clip(logits, -largest, largest)


def _log_sqrtsoftplus(logits: Float[Array, "*B"]) -> Float[Array, "*B"]:
    low = logits < _LOW
    return jnp.where(low, logits, jnp.log(jax.nn.softplus(jnp.where(low, 0.0, logits)))) / 2


# The logarithm of each affinity, up to a constant of the row.
_LOG_AFFINITIES: dict[str, Callable[[Array], Array]] = {
    "softmax": lambda logits: logits,
    "sigmoid": jax.nn.log_sigmoid,
    "sqrtsoftplus": _log_sqrtsoftplus,
}


def normalized_weights(logits: Float[Array, "T E"], experts: Int[Array, "T K"], score: str) -> Float[Array, "T K"]:
    """The chosen affinities divided by their sum, computed from the logits: rows sum to 1 whatever the logits.

    A ratio of affinities is a softmax over their logarithms: over the chosen logits themselves when the affinity is a
    softmax. It is therefore exact, and so is its gradient, where the affinities are too small for float32: when hash
    routing or a bias chooses experts whose logits lie far below the largest. For K = 1 the weight is 1 and has no
    gradient.

    Args:
      logits: router logits; infinite ones count as the largest finite number.
      experts: the chosen ids.
      score: a name in `AFFINITIES`.

    Example:
      >>> logits, experts = jnp.array([[0.0, 0.0, 1000.0]]), jnp.array([[0, 1]])
      >>> print(normalized_weights(logits, experts, "softmax"), combine_weights(jax.nn.softmax(logits), experts))
      [[0.5 0.5]] [[0. 0.]]
    """
    chosen = jnp.take_along_axis(_finite(logits), experts, axis=-1)
    return jax.nn.softmax(_LOG_AFFINITIES[score](chosen), axis=-1)


def combine_weights(
    probs: Float[Array, "T E"], experts: Int[Array, "T K"], *, normalize: bool = True, scale: int | float = 1.0
) -> Float[Array, "T K"]:
    """The chosen affinities, divided by their sum if ``normalize``, times ``scale``.

    Never the biased scores: a bias that leaks in here changes what the layer computes, not only where tokens go.
    Affinities that float32 cannot hold are 0 here, and a row of them stays 0; `normalized_weights`, which the router
    calls, knows their ratio. Transformers and DeepSeek add 1e-20 to the divisor instead, which changes a row by more
    than rounding once its affinities sum to less than about 1e-13.

    Example:
      >>> print(combine_weights(jnp.array([[0.25, 0.5, 0.25, 0.0]]), jnp.array([[1, 0]])))
      [[0.6666667  0.33333334]]
    """
    chosen = jnp.take_along_axis(probs, experts, axis=-1)
    if normalize:
        chosen = row_shares(chosen)
    return chosen * scale


def expert_load(
    experts: Int[Array, "T K"],
    num_experts: int,
    where: Bool[Array, "T"] | None = None,
    *,
    used: Bool[Array, "T K"] | None = None,
) -> Float[Array, "E"]:
    """Assignments per expert, counts as float32 ``[E]``; tokens with ``where=False``, pairs not ``used`` do not count."""
    taken = one_hot_experts(experts, num_experts)  # [T, K, E]
    if used is not None:
        taken = taken & used[:, :, None]
    if where is not None:
        taken = taken & as_mask(where, experts.shape[:1], "expert_load")[:, None, None]
    return taken.sum(axis=(0, 1)).astype(jnp.float32)


class Router(nnx.Module):
    """``logits = x @ kernel`` in float32, affinities, choice and combine weights.

    Holds ``kernel [D, E]`` (a Param) and ``bias [E]`` (a `RouterBias`, zero until balancing moves it); for noisy top-k
    ``noise_kernel [D, E]`` too (a Param, zero at first), for hash ``table [V, K]`` (a `HashTable`).
    """

    def __init__(self, config: MoEConfig, *, kernel_init: nnx.initializers.Initializer | None = None, rngs: nnx.Rngs):
        self.config = config
        shape = (config.d_model, config.num_experts)
        # A tenth of the usual size: affinities start nearly equal, so that a few bias steps can balance them.
        self.kernel = nnx.Param((kernel_init or fan_in(0.1))(rngs.params(), shape, jnp.float32))
        self.bias = RouterBias(jnp.zeros(config.num_experts, jnp.float32))
        selector = SELECTORS[config.select]
        self.noise_kernel = nnx.data(nnx.Param(jnp.zeros(shape, jnp.float32)) if selector.uses_noise else None)
        self.table = nnx.data(None)
        if selector.uses_token_ids:
            assert config.hash_vocab_size is not None  # the config's own check
            table = make_hash_table(rngs.params(), config.hash_vocab_size, config.num_experts, config.top_k)
            self.table = HashTable(table)

    def __call__(
        self,
        x: Float[Array, "T D"],
        *,
        tokens: TokenIds | None = None,
        where: Bool[Array, "T"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Routing:
        """Routes.

        Args:
          x: ``[T, D]``.
          tokens: token ids, which ``hash`` needs. One outside the table is an error; under `jax.jit`, where no value is
            known, its combine weights are NaN.
          where: True for real tokens.
          rngs: with a ``routing`` or default stream, switches the noise of ``noisy_topk`` on; None is deterministic.
        """
        config = self.config
        where = None if where is None else as_mask(where, x.shape[:1], "Router")
        logits = self._logits(x, rngs)
        probs = AFFINITIES[config.score](logits)
        table = None if self.table is None else self.table[...]
        selector = SELECTORS[config.select]
        known = None
        if tokens is not None and table is not None:
            tokens, known = known_ids(as_token_ids(tokens, table.shape[0]), table.shape[0])
        experts, used = selector.choose(config, probs, self.bias[...], tokens=tokens, table=table, where=where)
        normalize = config.normalize_weights and not selector.lists_all_experts
        if normalize:
            weights = normalized_weights(logits, experts, config.score) * config.routed_scaling_factor
        else:
            weights = combine_weights(probs, experts, normalize=False, scale=config.routed_scaling_factor)
        if known is not None:
            weights = jnp.where(known[:, None], weights, jnp.nan)
        used = jnp.ones(experts.shape, bool) if used is None else used
        if where is not None:
            used = used & where[:, None]
        weights = jnp.where(used, weights, 0.0)
        load = expert_load(experts, config.num_experts, used=used)
        return Routing(experts, weights, used, probs, logits, load, dropped=jnp.zeros((), jnp.float32))

    def _logits(self, x: Float[Array, "T D"], rngs: nnx.Rngs | None) -> Float[Array, "T E"]:
        # Full float32 also where the hardware would rather round to TF32: a rounded logit is another expert.
        x, highest = x.astype(jnp.float32), jax.lax.Precision.HIGHEST
        logits = jnp.matmul(x, self.kernel[...], precision=highest)
        if self.noise_kernel is None or rngs is None:
            return logits
        if "routing" not in rngs and "default" not in rngs:
            raise UserError('select="noisy_topk" draws its noise from rngs, which has no stream; add routing=key')
        return noisy_logits(logits, jnp.matmul(x, self.noise_kernel[...], precision=highest), rngs.routing())
