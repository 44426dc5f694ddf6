"""Routing: from router logits to the experts of each token. Axes: T tokens, D model width, E experts, K per token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import MoEConfig
from minimoe.layers import fan_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Who went where in one layer.

    Attributes:
      experts: chosen ids ``[T, K]`` int32, best selection score first; ties go to the lower id.
      weights: combine weights ``[T, K]`` float32, from affinities without the bias; 0 for masked tokens.
      probs: affinities ``[T, E]`` float32.
      logits: router logits ``[T, E]`` float32.
      load: assignments per expert ``[E]`` float32 counts; masked tokens are not counted.
      dropped: share of assignments that reached no expert, a float32 scalar in [0, 1].
    """

    experts: Int[Array, "T K"]
    weights: Float[Array, "T K"]
    probs: Float[Array, "T E"]
    logits: Float[Array, "T E"]
    load: Float[Array, "E"]
    dropped: Float[Array, ""]


class RouterBias(nnx.Variable):
    """Selection bias ``[E]`` of loss-free balancing. Not a Param: no gradient reaches it (see `balance.bias_update`)."""


def softmax_affinity(logits: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """Softmax over experts: rows sum to 1 (Switch, Mixtral, OLMoE)."""
    return jax.nn.softmax(logits, axis=-1)


def sigmoid_affinity(logits: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """Each expert judged alone, in (0, 1) (DeepSeek-V3 eq. 15, GLM-4.5).

    Held at its value at -40 (4e-18) below that: rows that sum to less would be squared to 0 in the backward pass of
    their normalisation, and give NaN.
    """
    return jax.nn.sigmoid(jnp.maximum(logits, -40.0))


def sqrtsoftplus_affinity(logits: Float[Array, "T E"]) -> Float[Array, "T E"]:
    """``sqrt(log(1 + exp(logit)))``, in (0, inf) (DeepSeek-V4 section 2.1).

    Near ``exp(x/2)`` far below zero, ``sqrt(x)`` far above. Softplus underflows in float32 below about -88, where the
    quotient in the derivative would be 0/0: there the affinity is held at its value at -80 and its gradient is 0.
    """
    return jnp.sqrt(jax.nn.softplus(jnp.maximum(logits, -80.0)))


AFFINITIES: dict[str, Callable[[Float[Array, "T E"]], Float[Array, "T E"]]] = {
    "softmax": softmax_affinity,
    "sigmoid": sigmoid_affinity,
    "sqrtsoftplus": sqrtsoftplus_affinity,
}


def select_topk(probs: Float[Array, "T E"], bias: Float[Array, "E"], top_k: int) -> Int[Array, "T K"]:
    """The K experts of largest ``affinity + bias``; equal scores go to the lower id.

    Example:
      >>> print(select_topk(jnp.array([[0.1, 0.5, 0.5, 0.2]]), jnp.zeros(4), 2))
      [[1 2]]
    """
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(probs) + jax.lax.stop_gradient(bias)[None, :], top_k)
    return experts.astype(jnp.int32)


SELECTORS: dict[str, Callable[..., Int[Array, "T K"]]] = {"topk": select_topk}


def combine_weights(
    probs: Float[Array, "T E"], experts: Int[Array, "T K"], *, normalize: bool = True, scale: float = 1.0
) -> Float[Array, "T K"]:
    """The chosen affinities, divided by their sum if ``normalize``, times ``scale``.

    Never the biased scores: a bias that leaks in here changes what the layer computes, not only where tokens go.
    The 1e-20 in the divisor is Transformers' and DeepSeek's.

    Example:
      >>> print(combine_weights(jnp.array([[0.25, 0.5, 0.25, 0.0]]), jnp.array([[1, 0]])))
      [[0.6666667  0.33333334]]
    """
    chosen = jnp.take_along_axis(probs, experts, axis=-1)
    if normalize:
        chosen = chosen / (chosen.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen * scale


def expert_load(
    experts: Int[Array, "T K"], num_experts: int, where: Bool[Array, "T"] | None = None
) -> Float[Array, "E"]:
    """Assignments per expert, counts as float32 ``[E]``; tokens with ``where=False`` are not counted."""
    taken = experts[:, :, None] == jnp.arange(num_experts, dtype=experts.dtype)[None, None, :]  # [T, K, E]
    if where is not None:
        taken = taken & where[:, None, None]
    return taken.sum(axis=(0, 1)).astype(jnp.float32)


class Router(nnx.Module):
    """``logits = x @ kernel`` in float32, affinities, choice and combine weights.

    Holds ``kernel [D, E]`` (a Param) and ``bias [E]`` (a `RouterBias`, zero until balancing moves it).
    """

    def __init__(self, config: MoEConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.d_model, config.num_experts)
        # A tenth of the usual size: affinities start nearly equal, so that a few bias steps can balance them.
        self.kernel = nnx.Param(fan_in(0.1)(rngs.params(), shape, jnp.float32))
        self.bias = RouterBias(jnp.zeros(config.num_experts, jnp.float32))

    def __call__(self, x: Float[Array, "T D"], *, where: Bool[Array, "T"] | None = None) -> Routing:
        config = self.config
        # Full float32 also where the hardware would rather round to TF32: a rounded logit is another expert.
        logits = jnp.matmul(x.astype(jnp.float32), self.kernel[...], precision=jax.lax.Precision.HIGHEST)
        probs = AFFINITIES[config.score](logits)
        experts = SELECTORS[config.select](probs, self.bias[...], config.top_k)
        weights = combine_weights(
            probs, experts, normalize=config.normalize_weights, scale=config.routed_scaling_factor
        )
        if where is not None:
            weights = jnp.where(where[:, None], weights, 0.0)
        load = expert_load(experts, config.num_experts, where)
        return Routing(experts, weights, probs, logits, load, dropped=jnp.zeros((), jnp.float32))
