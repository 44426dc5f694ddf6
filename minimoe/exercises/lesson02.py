"""Lesson 02, routing: top-k with a selection bias, the sqrt-softplus affinity, and groups.

Axes: T tokens, E experts, K experts per token, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.numeric import numerical_gradient
from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output


def ranked(scores: np.ndarray, top_k: int, *, best_first: bool = True, ties_up: bool = False) -> np.ndarray:
    """Ids of the ``top_k`` largest (or smallest) of a row, ties to the lower (or higher) id."""
    sign, tie = (-1 if best_first else 1), (-1 if ties_up else 1)
    order = sorted(range(len(scores)), key=lambda e: (sign * float(scores[e]), tie * e))
    return np.array(order[:top_k], np.int32)


# Top-k.


def topk_oracle(
    affinities: Float[np.ndarray, "T E"], bias: Float[np.ndarray, "E"], k: int
) -> tuple[Int[np.ndarray, "T K"], Float[np.ndarray, "T K"]]:
    """Token by token: order by biased score, weigh by the affinity itself."""
    experts, weights = [], []
    for row in affinities:
        chosen = ranked(row + bias, k)
        experts.append(chosen)
        weights.append(row[chosen] / sum(row[chosen]))
    return np.array(experts), np.array(weights)


def routed(
    choose: Callable[..., np.ndarray] | None = None, weigh: Callable[..., np.ndarray] | None = None
) -> Callable[..., Any]:
    """A mistaken router: another choice ``(row, bias, k)`` or other weights ``(row, bias, chosen)``."""

    def outputs(affinities: np.ndarray, bias: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        experts, weights = [], []
        for row in affinities.astype(np.float64):
            chosen = choose(row, bias, k) if choose else topk_oracle(row[None], bias, k)[0][0]
            experts.append(chosen)
            weights.append(weigh(row, bias, chosen) if weigh else row[chosen] / row[chosen].sum())
        return np.array(experts), np.array(weights)

    return outputs


def softmax(row: np.ndarray) -> np.ndarray:
    raised = np.exp(row - row.max())
    return raised / raised.sum()


def frozen_divisor(arguments: Arguments, expected: Arrays) -> Arrays:
    """Gradients of weights whose divisor counts as a constant."""
    affinities, bias, k = arguments
    experts, _ = topk_oracle(affinities.astype(np.float64), bias, k)
    divisor = np.take_along_axis(affinities, experts, 1).sum(1, keepdims=True)
    return numerical_gradient(lambda a: np.take_along_axis(a, experts, 1) / divisor, (affinities,), (0,))


def router_arguments(seed: int, tokens: int, num_experts: int, k: int) -> Arguments:
    """Sigmoid-like affinities and a bias large enough to change choices."""
    rng = np.random.default_rng(seed)
    affinities = rng.uniform(0.05, 0.95, (tokens, num_experts)).astype(np.float32)
    return affinities, rng.uniform(-0.4, 0.4, num_experts).astype(np.float32), k


def tied_arguments() -> Arguments:
    """Equal scores, exactly representable; in the second row they are equal only after the bias."""
    affinities = np.full((4, 6), 0.25, np.float32)
    affinities[0, 1:4] = 0.5
    affinities[1, :2] = 0.5, 0.75
    return affinities, np.array([0.25, 0.0, 0.5, 0.0, 0.0, 0.0], np.float32), 2


def small_and_large_arguments() -> Arguments:
    """Affinities near 1e-12 and near 100, as sqrt-softplus gives them for logits far out."""
    affinities, bias, k = router_arguments(203, 4, 6, 2)
    return affinities * np.array([[1e-12], [1e2], [1e-12], [1.0]], np.float32), 0 * bias, k


def negative_score_arguments() -> Arguments:
    affinities, bias, k = router_arguments(204, 4, 6, 2)
    return affinities, bias - np.float32(8), k


TOPK = Exercise(
    id="routing.topk",
    lesson=2,
    title="Top-k with a selection bias",
    signature="topk(affinities, bias, k)",
    task=(
        "Choose each token's K experts and their combine weights, as DeepSeek-V3 does (arXiv 2412.19437, eq. 13 to 16): "
        "the bias helps to *choose*, the weights come from the affinities alone, divided by the sum of the chosen ones.\n\n"
        "`affinities [T, E]` float32, positive, of any size; `bias [E]` float32, of any sign; `k` a Python int. Returns "
        "`(experts, weights)`: `experts [T, K]` int32, best score first, ties to the lower id; `weights [T, K]` float32, "
        "rows summing to 1, in the order of `experts`."
    ),
    difficulty=2,
    minutes=15,
    points=10,
    hints=(
        "There are two quantities and they must not be mixed up: the score, which only picks, and the affinity, which "
        "weighs. Which of the two does a gradient have to reach?",
        "jax.lax.top_k works on the last axis, returns the largest first and gives ties to the lower index. It returns "
        "values too: think about whether you want them.",
        "Once you have the ids, jnp.take_along_axis fetches the affinities that belong to them. Divide by their sum over "
        "the last axis with keepdims=True; affinities may be tiny, so anything added to that sum must be far tinier.",
    ),
    outputs=(Output("experts", "int32"), Output("weights", "float32")),
    oracle=topk_oracle,
    cases=(
        Case("first shape", lambda: router_arguments(201, 4, 6, 2)),
        Case("equal scores", tied_arguments),
        Case("extreme inputs", small_and_large_arguments),
        Case("all scores negative", negative_score_arguments, gradient=True),
        Case("other sizes", lambda: router_arguments(202, 7, 5, 3), gradient=True),
    ),
    mistakes=(
        Mistake(
            "bias in the weights",
            "the right experts, but weighted by affinity plus bias. The bias is a controller that balances load; if it "
            "leaks into the weights it changes what the layer computes.",
            routed(weigh=lambda row, bias, chosen: (row + bias)[chosen] / (row + bias)[chosen].sum()),
        ),
        Mistake(
            "unnormalised bias in the weights",
            "the weights are the biased scores, and not divided by their sum either.",
            routed(weigh=lambda row, bias, chosen: (row + bias)[chosen]),
        ),
        Mistake(
            "bottom-k",
            "picks the experts that fit the token least. argsort sorts upwards.",
            routed(choose=lambda row, bias, k: ranked(row + bias, k, best_first=False)),
        ),
        Mistake(
            "bias ignored",
            "chooses by affinity alone, so nothing could balance the load: the bias belongs to the choice.",
            routed(choose=lambda row, bias, k: ranked(row, k)),
        ),
        Mistake(
            "not normalised",
            "the weights are the chosen affinities as they are. They do not sum to 1, so tokens with small affinities "
            "would get a small output.",
            routed(weigh=lambda row, bias, chosen: row[chosen]),
        ),
        Mistake(
            "normalised over all experts",
            "divides by the sum over all experts. The weights of the chosen ones then sum to less than 1.",
            routed(weigh=lambda row, bias, chosen: row[chosen] / row.sum()),
        ),
        Mistake(
            "softmax of the affinities",
            "applies softmax to the chosen affinities. They are no logits: divide by their sum. A softmax of numbers "
            "between 0 and 1 is nearly uniform.",
            routed(weigh=lambda row, bias, chosen: softmax(row[chosen])),
        ),
        Mistake(
            "equal weights",
            "every chosen expert counts the same, and the router gets no gradient.",
            routed(weigh=lambda row, bias, chosen: np.full(len(chosen), 1 / len(chosen))),
        ),
        Mistake(
            "ties to the higher id",
            "among equal scores takes the higher id. A sorted and then reversed row does that; then two "
            "implementations route the same token differently.",
            routed(choose=lambda row, bias, k: ranked(row + bias, k, ties_up=True)),
        ),
        Mistake(
            "ordered by id",
            "the right experts and weights, but ordered by id instead of best first.",
            routed(choose=lambda row, bias, k: np.sort(ranked(row + bias, k))),
        ),
        Mistake(
            "worst of the chosen first",
            "the right experts and weights, but the other way round: the best score comes first.",
            routed(choose=lambda row, bias, k: ranked(row + bias, k)[::-1]),
        ),
        Mistake(
            "a large epsilon",
            "adds about 1e-6 to the divisor. Affinities may be smaller than that, and then the weights do not sum to 1; "
            "DeepSeek's code adds 1e-20.",
            routed(weigh=lambda row, bias, chosen: row[chosen] / (row[chosen].sum() + 1e-6)),
        ),
        Mistake(
            "divisor without gradient",
            "the values are right, but the sum of the chosen affinities is treated as a constant. Raising one weight has "
            "to lower the others.",
            gradient=frozen_divisor,
        ),
    ),
    wrt=("affinities",),
)


# Sqrt-softplus.


def sqrtsoftplus_oracle(logits: Float[np.ndarray, "T E"]) -> Float[np.ndarray, "T E"]:
    return np.sqrt(np.logaddexp(0.0, logits))


def in_float32(formula: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """A mistaken formula, computed as a float32 program computes it: overflows where that one does."""
    return lambda logits: formula(logits.astype(np.float32))


def nan_where(bad: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arguments, Arrays], Arrays]:
    """The right gradient with NaN at some logits."""
    return lambda arguments, expected: (np.where(bad(arguments[0]), np.nan, expected[0]),)


def logit_arguments(seed: int, tokens: int, num_experts: int) -> Arguments:
    rng = np.random.default_rng(seed)
    return (rng.uniform(-20.0, 20.0, (tokens, num_experts)).astype(np.float32),)


def extreme_logits() -> Arguments:
    return (np.array([[-1e4, -300.0, -20.0, 0.0], [20.0, 80.0, 300.0, 1e4], [-200.0, -120.0, 5.0, 120.0]], np.float32),)


SQRTSOFTPLUS = Exercise(
    id="routing.sqrtsoftplus",
    lesson=2,
    title="The sqrt-softplus affinity, for all logits",
    signature="sqrtsoftplus(logits)",
    task=(
        "DeepSeek-V4 turns router logits into affinities by $s = \\sqrt{\\log(1 + e^{x})}$ (arXiv 2606.19348, section "
        "2.1). Written down like that it overflows for large logits, and has a NaN gradient for very negative ones.\n\n"
        "`logits [T, E]` float32. Returns affinities `[T, E]` float32 that are finite, with a finite gradient, for "
        "logits from -10,000 to 10,000. Anything below 1e-12, in value or gradient, may be off by as much: it may be held "
        "at a tiny value."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "Above 89 exp overflows in float32; there log(1 + exp(x)) is x. JAX has a function for log(1 + exp(x)) that knows "
        "this.",
        "The derivative divides by the square root. Below about -90 softplus is 0 in float32, and the chain rule computes "
        "0/0. The cure has to come before the function, not after it.",
        "jnp.where evaluates, and differentiates, both branches: NaN times 0 is NaN. Limit the argument instead, with "
        "jnp.maximum at a logit whose affinity is negligible but whose softplus is not 0 yet.",
    ),
    outputs=(Output("affinities", "float32"),),
    oracle=sqrtsoftplus_oracle,
    cases=(
        Case("first shape", lambda: logit_arguments(211, 3, 4), gradient=True, absolute=0.0),
        Case("extreme inputs", extreme_logits, gradient=True, absolute=1e-12),
        Case("other sizes", lambda: logit_arguments(212, 5, 2), gradient=True, absolute=0.0),
    ),
    mistakes=(
        Mistake(
            "softplus without the square root",
            "that is log(1 + exp(x)); the affinity is its square root.",
            lambda logits: np.logaddexp(0.0, logits.astype(np.float64)),
        ),
        Mistake(
            "square root inside the logarithm",
            "takes the root of exp(x) before the logarithm. The root belongs around the whole.",
            lambda logits: np.logaddexp(0.0, logits.astype(np.float64) / 2),
        ),
        Mistake(
            "sigmoid",
            "that is the affinity of DeepSeek-V3. Sqrt-softplus does not stop at 1: it grows like the root of the logit.",
            lambda logits: 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64))),
        ),
        Mistake(
            "overflow in exp",
            "the formula as written: exp(x) is infinite in float32 from x = 89 on, and its logarithm stays infinite.",
            in_float32(lambda x: np.sqrt(np.log1p(np.exp(x)))),
        ),
        Mistake(
            "log(1 + exp(x)) loses small values",
            "1 + exp(x) is exactly 1 in float32 below about -17, and its logarithm 0: the affinity of an unlikely expert "
            "vanishes. log1p exists for this.",
            in_float32(lambda x: np.sqrt(np.log(np.float32(1) + np.exp(x)))),
        ),
        Mistake(
            "root of the logit",
            "that is what it looks like far above zero. Below, softplus bends smoothly instead of stopping at 0.",
            lambda logits: np.sqrt(np.maximum(logits.astype(np.float64), 0.0)),
        ),
        Mistake(
            "NaN gradient far below zero",
            "the values are right, but below about -90 softplus is 0 in float32 and the root's derivative is 0/0. One such "
            "logit turns every weight of the router into NaN.",
            gradient=nan_where(lambda x: x < -90),
        ),
        Mistake(
            "NaN gradient far above zero",
            "the values are right, but jnp.where differentiates the branch that it does not take as well: exp overflows "
            "there, and infinity times 0 is NaN.",
            gradient=nan_where(lambda x: x > 90),
        ),
        Mistake(
            "NaN gradient on both sides",
            "the values are right. Far above zero jnp.where differentiates also the branch in which exp overflows; far "
            "below zero softplus is 0 in float32 and the root's derivative is 0/0.",
            gradient=nan_where(lambda x: abs(x) > 90),
        ),
    ),
    wrt=("logits",),
)


# Groups.


def group_limited_oracle(
    scores: Float[np.ndarray, "T E"], num_groups: int, top_k_groups: int, k: int
) -> Int[np.ndarray, "T K"]:
    """Token by token: rank the groups by their two best experts, then the experts of the best groups."""
    experts = []
    for row in scores:
        groups = np.array_split(np.arange(len(row)), num_groups)
        strength = np.array([sum(sorted(row[group])[-2:]) for group in groups])
        members = np.concatenate([groups[g] for g in np.sort(ranked(strength, top_k_groups))])
        experts.append(members[ranked(row[members], k)])
    return np.array(experts, np.int32)


def grouped(
    strength: Callable[[np.ndarray], float] = lambda group: float(np.sort(group)[-2:].sum()),
    *,
    outside: float = -np.inf,
    strided: bool = False,
    best_first: bool = True,
) -> Callable[..., Any]:
    """A mistaken choice: another score of a group, another value for the experts left out, other groups."""

    def outputs(scores: np.ndarray, num_groups: int, top_k_groups: int, k: int) -> np.ndarray:
        num_experts = scores.shape[1]
        ids = np.arange(num_experts)
        group_of = ids % num_groups if strided else ids // (num_experts // num_groups)
        experts = []
        for row in scores.astype(np.float64):
            values = np.array([strength(row[group_of == g]) for g in range(num_groups)])
            kept = ranked(values, top_k_groups, best_first=best_first)
            experts.append(ranked(np.where(np.isin(group_of, kept), row, outside), k))
        return np.array(experts)

    return outputs


def no_groups(scores: np.ndarray, num_groups: int, top_k_groups: int, k: int) -> np.ndarray:
    return np.array([ranked(row, k) for row in scores])


def group_arguments(
    seed: int, tokens: int, num_experts: int, num_groups: int, top_k_groups: int, k: int, shift: float = 0.0
) -> Arguments:
    scores = np.random.default_rng(seed).uniform(0.05, 0.95, (tokens, num_experts)) + shift
    return scores.astype(np.float32), num_groups, top_k_groups, k


def tied_groups() -> Arguments:
    """Equal groups and equal experts: lower ids win both times."""
    scores = np.full((6, 12), 0.25, np.float32)
    scores[::2, ::2] = scores[1::2, 4:] = 0.5
    return scores, 4, 2, 3


GROUP_LIMITED = Exercise(
    id="routing.group_limited",
    lesson=2,
    title="Group-limited routing",
    signature="group_limited(scores, num_groups, top_k_groups, k)",
    task=(
        "DeepSeek-V3 keeps a token on few machines (arXiv 2412.19437, section 2.1.2): the E experts form G equal groups "
        "of neighbours, expert 0 to E/G-1 being the first. A group's score is the sum of its *two* best expert scores. "
        "A token keeps its `top_k_groups` best groups and chooses its K experts among theirs.\n\n"
        "`scores [T, E]` float32, biased already, so of any sign; the others Python ints, with at least two experts in a "
        "group and at least K in the groups kept. Returns `experts [T, K]` int32, best score first; ties, of groups and "
        "of experts, go to the lower id."
    ),
    difficulty=3,
    minutes=20,
    points=10,
    hints=(
        "There are two top-k in it, one after the other: first over G group scores, then over E expert scores of which "
        "some have been made impossible.",
        "Reshaping to [T, G, E/G] puts neighbours together. jax.lax.top_k on the last axis gives the two best of every "
        "group.",
        "To make an expert impossible its score must lose against *every* score, also a negative one. A mask over groups "
        "[T, G] becomes one over experts [T, E] with jnp.repeat(mask, E // G, axis=1).",
    ),
    outputs=(Output("experts", "int32"),),
    oracle=group_limited_oracle,
    cases=(
        Case("first shape", lambda: group_arguments(224, 6, 12, 4, 2, 3)),
        Case("negative scores", lambda: group_arguments(223, 6, 12, 4, 2, 3, shift=-1.0)),
        Case("equal scores", tied_groups),
        Case("extreme inputs", lambda: group_arguments(225, 6, 12, 4, 2, 3, shift=-2e3)),
        Case("other sizes", lambda: group_arguments(222, 4, 16, 2, 1, 5)),
    ),
    mistakes=(
        Mistake(
            "masked with 0",
            "experts of the other groups get the score 0. A bias can push the right ones below 0, and then the masked "
            "ones win: use minus infinity.",
            grouped(outside=0.0),
        ),
        Mistake(
            "group judged by its best expert",
            "scores a group by its single best expert. With K experts spread over the kept groups, a group should have "
            "more than one to offer: V3 adds up two.",
            grouped(lambda group: float(group.max())),
        ),
        Mistake(
            "group judged by all its experts",
            "scores a group by the sum or the mean of all its experts. A token uses only the best of them; the others say "
            "nothing about what the group has to offer.",
            grouped(lambda group: float(group.sum())),
        ),
        Mistake(
            "groups by stride",
            "puts experts 0, G, 2G, ... into one group. Neighbours live on the same machine: reshape to [G, E/G], not "
            "[E/G, G].",
            grouped(strided=True),
        ),
        Mistake(
            "no groups",
            "this is plain top-k: the choice is not limited to the best groups.",
            no_groups,
        ),
        Mistake(
            "worst groups kept",
            "keeps the groups with the lowest scores.",
            grouped(best_first=False),
        ),
    ),
)

EXERCISES = (TOPK, SQRTSOFTPLUS, GROUP_LIMITED)
