"""The lightning indexer: which compressed entries a query reads.

    query at t     q^I_1 .. q^I_n (small heads, from the query latent)        w_1 .. w_n (from the token)
                      |
    small keys     k_0  k_1  k_2  k_3  | k_4 ...       compressed as the entries are, at a smaller width
    scores         I_0  I_1  I_2  I_3  | not visible
                   top K of the visible ones: the query reads these entries and no others

    I_(t,s) = sum_h w_(t,h) ReLU(q^I_(t,h) . k_s) / sqrt(dim * heads)     (equations 13-17 of the report on V4)

A choice has no gradient, so the language loss does not train the indexer. Its teacher is the attention itself, as in
DeepSeek-V3.2: the softmax of its scores shall be the weights that the heads give the chosen entries (`index_loss`). The
report on V4 does not say how its indexer learns.

Axes: B batch, L queries, E entries, D model width, Q width of the query latent, K entries chosen.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.attention.compress import Compressor
from minimoe.attention.rotary import turn_last
from minimoe.layers import fan_in

TINY, LOWEST = 1e-30, -1e30


def index_scores(
    q: Float[Array, "B L n d"], keys: Float[Array, "B E d"] | Float[Array, "B L E d"], weights: Float[Array, "B L n"]
) -> Float[Array, "B L E"]:
    """The score I of every entry for every query, float32. The keys are the same for all queries, or its own for each."""
    each = "bed" if keys.ndim == 3 else "bled"
    hits = jax.nn.relu(jnp.einsum(f"blnd,{each}->blne", q, keys, preferred_element_type=jnp.float32))
    scale = (q.shape[2] * q.shape[3]) ** -0.5
    return jnp.einsum("blne,bln->ble", hits, weights.astype(jnp.float32)) * scale


def choose(
    scores: Float[Array, "B L E"], visible: Bool[Array, "L E"], top_k: int
) -> tuple[Int[Array, "B L K"], Bool[Array, "B L K"]]:
    """The K best of the visible entries, and which of the K are visible at all: early queries see fewer.

    Of equal scores the earlier entry wins. They are common with few heads: n ReLUs are all shut for about one entry in 2^n,
    whose score is 0. The equations leave the order open, and ``torch.topk`` has another one, so a small model's text may
    part from Transformers' at such a tie. The published 64 heads have none.
    """
    # Shut ReLUs and negative weights add up to -0, which top_k puts after 0.
    scores = jnp.where(scores == 0, 0.0, scores)
    index = jax.lax.top_k(jnp.where(visible[None], scores, -jnp.inf), min(top_k, scores.shape[2]))[1]
    seen = jnp.broadcast_to(visible[None], scores.shape)
    return index, jnp.take_along_axis(seen, index, axis=2)


def index_loss(
    scores: Float[Array, "B L E"], weights: Float[Array, "B L N E"], chosen: Bool[Array, "B L E"]
) -> Float[Array, ""]:
    """How far the softmax of the scores is from the attention on the chosen entries: KL, nats, mean over queries.

    ``p_(t,s) = sum_n a_(t,n,s) / sum_(n,r) a_(t,n,r)`` over the chosen entries; ``KL(p_t || softmax(I_t))``. It is 0 where
    the two agree. Queries that read no entry do not count; padded tokens do.

    Args:
      scores: I. weights: a, what each head gives each entry; no gradient flows into them. chosen: entries that were read.

    References:
      DeepSeek-AI, DeepSeek-V3.2-Exp (2025), equation 4: the stage of training in which attention is sparse.
    """
    target = jnp.where(chosen, jax.lax.stop_gradient(weights.astype(jnp.float32)).sum(axis=2), 0.0)
    target /= jnp.maximum(target.sum(axis=2, keepdims=True), TINY)
    guess = jax.nn.log_softmax(jnp.where(chosen, scores, LOWEST), axis=2)
    each = jnp.where(chosen, target * (jnp.log(jnp.maximum(target, TINY)) - guess), 0.0).sum(axis=2)
    reads = chosen.any(axis=2)
    return each.sum() / jnp.maximum(reads.sum(), 1).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexLoss:
    """What a layer's indexer lost in a call without a cache: `index_loss`, nats, before its weight."""

    value: Float[Array, ""]


@jax.custom_vjp
def with_loss(y: Array, loss: Float[Array, ""]) -> Array:
    """``y`` itself. Whatever is differentiated through it is differentiated as if ``loss`` were added to the end result.

    The loss of a layer then needs no way out of the model. Its weight does not follow a factor on the end result.
    """
    return y


with_loss.defvjp(lambda y, loss: (y, None), lambda _, slope: (slope, jnp.ones((), jnp.float32)))


class Indexer(nnx.Module):
    """Small queries, small keys and a weight a head.

    Args:
      d_model: D. q_rank: Q. heads, dim: of the small queries. ratio: m of the entries.
      frequencies: of the rotary positions. dtypes, norm_eps and rngs as in `Compressor`.
    """

    def __init__(self, d_model: int, q_rank: int, heads: int, dim: int, ratio: int, **settings: Any):
        self.heads, self.dim = heads, dim
        dtypes = {name: settings[name] for name in ("dtype", "param_dtype", "rngs")}
        self.compressor = Compressor(d_model, dim, ratio, overlap=True, **settings)
        self.q_proj = nnx.Linear(q_rank, heads * dim, use_bias=False, kernel_init=fan_in(), **dtypes)
        self.weights_proj = nnx.Linear(d_model, heads, use_bias=False, kernel_init=fan_in(), **dtypes)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        latent: Float[Array, "B L Q"],
        angles: tuple[Float[Array, "L _"], Float[Array, "L _"]],
        keys: Float[Array, "B E d"] | Float[Array, "B L E d"],
    ) -> Float[Array, "B L E"]:
        """Scores of the entries that these keys stand for."""
        q = turn_last(self.q_proj(latent).reshape(*x.shape[:2], self.heads, self.dim), *angles)
        return index_scores(q, keys.astype(q.dtype), self.weights_proj(x))
