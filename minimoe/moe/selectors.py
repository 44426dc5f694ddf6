"""Selectors: from affinities to choices. Axes: T tokens, E experts, K experts per token, V vocabulary, C slots.

====================  ==============================================================================================
``topk``              the K best experts of each token
``group_limited``     the same within the best groups of experts: few machines per token (DeepSeek-V3)
``noisy_topk``        top-k of logits with learned noise while training (Shazeer et al. 2017)
``hash``              a frozen table by token id: nothing to balance, nothing to learn (Roller et al. 2021)
``expert_choice``     each expert takes the tokens it scores highest: even load, but it depends on later tokens
====================  ==============================================================================================

Ties go to the lower id. No selector passes gradient: what a choice is worth (the combine weight) comes from the
affinity alone. The first three choose by ``affinity + bias``. ``hash`` and ``expert_choice`` do not read the bias. In
``expert_choice`` it would shift all candidates of one expert alike, and the load is even without it.

`SELECTORS` holds each of them with what the rest of the package must know about it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import SELECTORS as FACTS
from minimoe.config import MoEConfig, SelectorFacts
from minimoe.errors import UserError
from minimoe.layers import as_mask
from minimoe.layers.token_ids import TokenIds, as_token_ids, known_ids
from minimoe.moe.capacity import expert_capacity
from minimoe.moe.pairs import one_hot_experts


def _scores(probs: Float[Array, "T E"], bias: Float[Array, "E"]) -> Float[Array, "T E"]:
    return jax.lax.stop_gradient(probs) + jax.lax.stop_gradient(bias)[None, :]


def select_topk(probs: Float[Array, "T E"], bias: Float[Array, "E"], top_k: int) -> Int[Array, "T K"]:
    """The K experts of largest ``affinity + bias``; equal scores go to the lower id.

    Example:
      >>> print(select_topk(jnp.array([[0.1, 0.5, 0.5, 0.2]]), jnp.zeros(4), 2))
      [[1 2]]
    """
    _, experts = jax.lax.top_k(_scores(probs, bias), top_k)
    return experts.astype(jnp.int32)


def select_group_limited(
    probs: Float[Array, "T E"], bias: Float[Array, "E"], top_k: int, *, num_groups: int, top_k_groups: int
) -> Int[Array, "T K"]:
    """Top-k within the best groups: experts ``g*E/G .. (g+1)*E/G - 1`` form group g, one machine's worth of experts.

    A group's score is the sum of its two best ``affinity + bias`` (of its only one, if it has one). The experts of
    other groups are masked with -inf, not with 0: biased scores may be negative, and a 0 would then win. A bias of -inf bans
    an expert; a group of which one expert is allowed then still goes before a group of which none is.

    Args:
      num_groups: G, a divisor of E.
      top_k_groups: groups kept for each token; must hold at least K experts.

    Example:
      >>> probs = jnp.array([[0.9, 0.0, 0.0, 0.5, 0.6, 0.1]])  # the best expert sits in a poor group
      >>> print(select_group_limited(probs, jnp.zeros(6), 2, num_groups=2, top_k_groups=1))
      [[4 3]]

    References:
      DeepSeek-AI, `DeepSeek-V3 <https://arxiv.org/abs/2412.19437>`_, section 2.1.2 (node-limited routing).
    """
    scores = _scores(probs, bias)
    grouped = scores.reshape(scores.shape[0], num_groups, scores.shape[1] // num_groups)  # [T, G, E/G]
    best, _ = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))
    best = jnp.maximum(best, jnp.finfo(best.dtype).min / 4)  # sums of two stay finite, so they can be compared
    _, groups = jax.lax.top_k(best.sum(axis=-1), top_k_groups)  # [T, kept]
    kept = one_hot_experts(groups, num_groups).any(axis=1)  # [T, G]
    masked = jnp.where(kept[:, :, None], grouped, -jnp.inf).reshape(scores.shape)
    return jax.lax.top_k(masked, top_k)[1].astype(jnp.int32)


def noisy_logits(logits: Float[Array, "T E"], noise: Float[Array, "T E"], key: Array) -> Float[Array, "T E"]:
    """``logits + normal * softplus(noise)``: random choices, with a spread learned for each token and expert.

    Selection and combine weights both come from the noisy logits, as in the paper; so does the gradient of ``noise``.

    Args:
      logits: ``x @ kernel``. noise: ``x @ noise_kernel``; at 0 the standard deviation is log 2.
      key: of the normal draws.

    References:
      Shazeer et al., `Outrageously Large Neural Networks <https://arxiv.org/abs/1701.06538>`_, eq. 3-5.
    """
    return logits + jax.random.normal(key, logits.shape, logits.dtype) * jax.nn.softplus(noise)


def make_hash_table(key: Array, vocab_size: int, num_experts: int, top_k: int) -> Int[Array, "V K"]:
    """K different experts for each token id, drawn once; every expert gets the same number of ids, give or take one.

    Random permutations of the experts are laid end to end and cut into rows of K. A row with parts of two permutations
    could hold an expert twice, so each permutation is repeated until its end is the end of a row. Experts own equally
    many ids, but not equally many tokens: the expert of a frequent id is busier.

    References:
      Roller et al., `Hash Layers <https://arxiv.org/abs/2106.04426>`_; DeepSeek-V4 section 2.1 uses such a table in
      its first three layers and does not say how it was drawn.
    """
    rows = num_experts // math.gcd(num_experts, top_k)  # after which a permutation has been used up, K/gcd times
    cycles = -(-vocab_size // rows)
    order_key, shuffle_key = jax.random.split(key)
    orders = jnp.argsort(jax.random.uniform(order_key, (cycles, num_experts)), axis=1)  # [cycles, E]
    columns = jnp.arange(rows * top_k, dtype=jnp.int32) % num_experts
    table = orders[:, columns].reshape(-1, top_k)[:vocab_size]
    return jax.random.permutation(shuffle_key, table, axis=0).astype(jnp.int32)


def select_hash(table: Int[Array, "V K"], tokens: TokenIds) -> Int[Array, "T K"]:
    """The rows of ``table`` at the token ids.

    Under `jax.jit` no error can leave the program, and an id outside 0..V-1 gets the row of id 0; `Router` then makes its
    combine weights NaN.

    Raises:
      UserError: for an id outside 0..V-1 whose value is known.
    """
    ids, _ = known_ids(as_token_ids(tokens, table.shape[0]), table.shape[0])
    return table.at[ids].get(mode="promise_in_bounds")


def select_expert_choice(
    probs: Float[Array, "T E"], capacity: int, *, where: Bool[Array, "T"] | None = None
) -> Bool[Array, "T E"]:
    """Whether each expert takes each token: its ``capacity`` largest affinities among all tokens, ties to the earlier.

    Every expert works equally hard by construction; a token may get all experts or none. Whether it is taken depends on
    the tokens *after* it: a language model trained like this reads the future, and decoding, where the future is
    missing, computes something else (a token alone in its batch is taken by every expert).

    Args:
      probs: affinities; the paper's are a softmax over experts.
      capacity: C, tokens per expert, at most T.
      where: False for tokens that may not be taken.

    Example:
      >>> print(select_expert_choice(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), 1))
      [[ True False]
       [False False]
       [False  True]]

    References:
      Zhou et al., `Mixture-of-Experts with Expert Choice Routing <https://arxiv.org/abs/2202.09368>`_, section 3.2.
    """
    scores = jax.lax.stop_gradient(probs).T  # [E, T]
    if where is not None:
        where = as_mask(where, probs.shape[:1], "select_expert_choice")
        scores = jnp.where(where[None, :], scores, -jnp.inf)
    _, picks = jax.lax.top_k(scores, capacity)  # [E, C]
    row = jnp.arange(scores.shape[0], dtype=picks.dtype)[:, None]
    taken = jnp.zeros(scores.shape, bool).at[row, picks].set(True).T
    return taken if where is None else taken & where[:, None]


class Choice(NamedTuple):
    """``experts [T, K]`` int32, and ``used [T, K]``: which of these pairs count (None: all of them)."""

    experts: Int[Array, "T K"]
    used: Bool[Array, "T K"] | None = None


def _topk(config: MoEConfig, probs: Array, bias: Array, **_: Any) -> Choice:
    return Choice(select_topk(probs, bias, config.top_k))


def _group_limited(config: MoEConfig, probs: Array, bias: Array, **_: Any) -> Choice:
    groups = {"num_groups": config.num_groups, "top_k_groups": config.top_k_groups}
    return Choice(select_group_limited(probs, bias, config.top_k, **groups))


def _hash(
    config: MoEConfig, probs: Array, bias: Array, *, tokens: Array | None, table: Array | None, **_: Any
) -> Choice:
    del probs, bias
    if tokens is None or table is None:
        raise UserError('select="hash" looks experts up by token id, but tokens=None; pass layer(x, tokens=ids)')
    return Choice(select_hash(table, tokens))


def _expert_choice(config: MoEConfig, probs: Array, bias: Array, *, where: Array | None, **_: Any) -> Choice:
    del bias
    used = select_expert_choice(probs, expert_capacity(probs.shape[0], config), where=where)
    ids = jnp.arange(config.num_experts, dtype=jnp.int32)
    return Choice(jnp.broadcast_to(ids[None, :], used.shape), used)


@dataclasses.dataclass(frozen=True)
class Selector(SelectorFacts):
    """A selector: how it chooses, and the facts that its config knows too.

    Attributes:
      choose: ``(config, probs [T, E], bias [E], *, tokens, table, where) -> Choice``; each takes what it needs.
    """

    choose: Callable[..., Choice] = _topk


_CHOOSE: dict[str, Callable[..., Choice]] = {
    "topk": _topk,
    "group_limited": _group_limited,
    "noisy_topk": _topk,
    "hash": _hash,
    "expert_choice": _expert_choice,
}
SELECTORS: dict[str, Selector] = {
    name: Selector(choose=_CHOOSE[name], **dataclasses.asdict(facts)) for name, facts in FACTS.items()
}
