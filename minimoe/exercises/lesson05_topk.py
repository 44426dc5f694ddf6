"""Lesson 05, second exercise: a teacher of whom only the best words were kept.

Axes: N positions, V words, k cached words. p is the teacher's distribution, q the student's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.lesson05_kd import EPSILONS, LARGE, UNSTABLE, in_bfloat16, log_softmax
from minimoe.exercises.numeric import cotangent
from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output


def topk_oracle(
    student: Float[np.ndarray, "N V"],
    values: Float[np.ndarray, "N k"],
    ids: Int[np.ndarray, "N k"],
    tail: Float[np.ndarray, "N"],
) -> Float[np.ndarray, "N"]:
    """Position by position and word by word; all words that are not among the ids are one class."""
    losses = []
    for logits, known, words, rest in zip(student, values, ids, tail, strict=True):
        log_q = log_softmax(logits)
        loss = sum(np.exp(log_p) * (log_p - log_q[word]) for log_p, word in zip(known, words, strict=True))
        if rest > -np.inf:
            others = [log_q[word] for word in range(len(logits)) if word not in words]
            loss += np.exp(rest) * (rest - np.logaddexp.reduce(others))
        losses.append(loss)
    return np.array(losses)


# What can go wrong: which words, which sums, and how the rest is computed.


def take(array: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.take_along_axis(array, ids, axis=1)


def kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Word by word, 0 where p is; not summed."""
    return np.where(np.exp(log_p) > 0, np.exp(log_p) * (log_p - log_q), 0.0)


@dataclasses.dataclass(frozen=True)
class Given:
    """The arguments of one case in float64, and the parts of the loss."""

    student: np.ndarray
    values: np.ndarray
    ids: np.ndarray
    tail: np.ndarray

    @property
    def log_q(self) -> np.ndarray:
        return log_softmax(self.student)

    @property
    def chosen(self) -> np.ndarray:
        """log q of the k words."""
        return take(self.log_q, self.ids)

    @property
    def others(self) -> np.ndarray:
        """log q, and -inf for the k words."""
        log_q = self.log_q.copy()
        np.put_along_axis(log_q, self.ids, -np.inf, axis=1)
        return log_q

    @property
    def rest(self) -> np.ndarray:
        """log q of all other words together."""
        return np.logaddexp.reduce(self.others, axis=1)

    def loss(self, chosen: Any = None, rest: Any = None) -> np.ndarray:
        """The loss with the student's part replaced."""
        chosen, rest = self.chosen if chosen is None else chosen, self.rest if rest is None else rest
        return np.asarray(kl(self.values, chosen).sum(axis=1) + kl(self.tail, rest))


def given(arguments: Arguments) -> Given:
    student, values, ids, tail = arguments
    return Given(student.astype(np.float64), values.astype(np.float64), ids, tail.astype(np.float64))


def asked_gradient(student: np.ndarray, values: np.ndarray, ids: np.ndarray, tail: np.ndarray) -> Arrays:
    """Exact also where differences are not: q less p on the k words; on the others in proportion to their share."""
    g = given((student, values, ids, tail))
    target = np.where(tail > -np.inf, np.exp(tail), 0.0)[:, None]
    share = np.exp(g.others - np.where(g.rest > -np.inf, g.rest, 0.0)[:, None])  # of the tail's mass; 0 for the k words
    goal = target * share
    np.put_along_axis(goal, ids, np.exp(g.values), axis=1)
    mass = np.exp(g.values).sum(axis=1, keepdims=True) + target
    return (cotangent(tail.shape)[:, None] * (mass * np.exp(g.log_q) - goal),)


def mistaken(loss: Callable[[Given], Any]) -> Callable[..., Any]:
    return lambda *arguments: loss(given(arguments))


def renormalised(g: Given) -> Any:
    return kl(log_softmax(g.values), log_softmax(g.chosen)).sum(axis=1)


def reversed_(g: Given) -> Any:
    return kl(g.chosen, g.values).sum(axis=1) + kl(g.rest, g.tail)


def spread(g: Given) -> Any:
    """The teacher's tail shared out evenly, then the whole KL."""
    others = g.student.shape[1] - g.ids.shape[1]
    log_p = np.repeat(g.tail[:, None] - np.log(others), g.student.shape[1], axis=1)
    np.put_along_axis(log_p, g.ids, g.values, axis=1)
    return kl(log_p, g.log_q).sum(axis=1)


def first_words(g: Given) -> Any:
    return dataclasses.replace(g, ids=np.broadcast_to(np.arange(g.ids.shape[1]), g.ids.shape)).loss()


def over_the_words(log_q: np.ndarray) -> np.ndarray:
    return log_q - np.logaddexp.reduce(log_q, axis=1)[:, None]


def student_renormalised() -> Iterator[Callable[..., Any]]:
    """Over the k words, with the tail left out, and with the tail compared all the same."""
    yield mistaken(lambda g: g.loss(over_the_words(g.chosen)) - kl(g.tail, g.rest))
    yield mistaken(lambda g: g.loss(over_the_words(g.chosen)))


def as_probabilities() -> Iterator[Callable[..., Any]]:
    """The cached numbers as weights, with and without the tail, and with their logarithms taken."""
    yield mistaken(lambda g: (g.values * (g.values - g.chosen)).sum(axis=1) + g.tail * (g.tail - g.rest))
    yield mistaken(lambda g: (g.values * (g.values - g.chosen)).sum(axis=1) + kl(g.tail, g.rest))
    yield mistaken(lambda g: (g.values * (np.log(g.values) - g.chosen)).sum(axis=1))
    yield mistaken(lambda g: (np.exp(g.values) * (np.log(g.values) - g.chosen)).sum(axis=1))


def unstable() -> Iterator[Callable[..., Any]]:
    """Logarithms of probabilities that have underflowed or overflowed: of the k words, and of the rest too."""
    for log in UNSTABLE:
        yield mistaken(lambda g, log=log: g.loss(take(log(g.student), g.ids), added_up(g, log(g.student))))
        yield mistaken(lambda g, log=log: g.loss(take(log(g.student), g.ids)))


def added_up(g: Given, log_q: np.ndarray) -> Any:
    return np.log(np.where(g.others > -np.inf, np.exp(log_q), 0.0).sum(axis=1))


def underflowing_tail() -> Iterator[Callable[..., Any]]:
    """The tail as a probability, added up or what is missing to 1, and kept above 0 in the ways that people choose."""
    yield mistaken(lambda g: g.loss(rest=added_up(g, g.log_q)))
    for epsilon in EPSILONS:
        yield mistaken(lambda g, e=epsilon: g.loss(rest=np.log(np.maximum(np.exp(g.rest), e))))
        yield mistaken(lambda g, e=epsilon: g.loss(rest=np.log(np.exp(g.rest) + e)))


def epsilons() -> Iterator[Callable[..., Any]]:
    """An epsilon beside every probability of the student."""
    for epsilon in EPSILONS:
        yield mistaken(lambda g, e=epsilon: g.loss(np.log(np.exp(g.chosen) + e), np.log(np.exp(g.rest) + e)))
        yield mistaken(lambda g, e=epsilon: g.loss(np.log(np.exp(g.chosen) + e)))
        yield mistaken(lambda g, e=epsilon: several(g, e))


def several(g: Given, epsilon: float) -> Any:
    """Beside every word's, and then added up for the rest."""
    log_q = np.log(np.exp(g.log_q) + epsilon)
    return g.loss(take(log_q, g.ids), added_up(g, log_q))


def nan_without_tail(g: Given) -> Any:
    return np.where(g.tail > -np.inf, g.loss(), np.nan)


def nan_gradient_without_tail(arguments: Arguments, expected: Arrays) -> Arrays:
    return (np.where(arguments[3][:, None] > -np.inf, expected[0], np.nan),)


def cached_arguments(seed: int, positions: int, words: int, k: int, *, none_left: tuple[int, ...] = ()) -> Arguments:
    """The best k of a teacher over all words; in the rows ``none_left`` it gives the others no probability at all."""
    rng = np.random.default_rng(seed)
    log_p = log_softmax(rng.normal(0.0, 1.5, (positions, words)))
    order = np.argsort(-log_p, axis=1)
    ids, left = order[:, :k], order[:, k:]
    values = take(log_p, ids)
    tail = np.logaddexp.reduce(take(log_p, left), axis=1) if k < words else np.full(positions, -np.inf)
    for row in none_left:
        values[row], tail[row] = log_softmax(values[row]), -np.inf
    student = rng.normal(2.0, 1.5, (positions, words))
    return student.astype(np.float32), values.astype(np.float32), ids.astype(np.int32), tail.astype(np.float32)


def extreme_arguments() -> Arguments:
    """Students that are certain: of a cached word, of another; and a teacher that is."""
    big = 1e4
    student = np.zeros((4, 7))
    student[0, 4] = student[1, 0] = student[3, 2] = big
    student[2] = [-big, 1 - big, 2 - big, -big, -big, -big, 3 - big]
    ids = np.array([[4, 1, 6], [5, 2, 3], [6, 2, 0], [2, 0, 1]], np.int32)
    p = np.array([[0.5, 0.125, 0.125], [0.5, 0.25, 0.125], [0.25, 0.25, 0.25], [0.5, 0.25, 0.125]])
    values, tail = np.log(p), np.log(1 - p.sum(axis=1))
    values[2], tail[2] = [0.0, -big, -2 * big], -big
    return student.astype(np.float32), values.astype(np.float32), ids, tail.astype(np.float32)


TOP_K_TEACHER = Exercise(
    id="distillation.topk",
    lesson=5,
    title="A teacher kept as its best words",
    signature="topk_kl(student, values, ids, tail)",
    task=(
        "Asking the teacher once and storing its answers is cheap only if few numbers a position are kept: the "
        "log-probabilities of its k best words, which words they are, and the logarithm of the mass left for all others. "
        "Those others are compared as **one more class**:\n\n"
        "$$\\ell = \\sum_{i=1}^{k} p_i \\, (\\log p_i - \\log q_{w_i}) \\; + \\; "
        "p_{\\mathrm{tail}} \\, (\\log p_{\\mathrm{tail}} - \\log q_{\\mathrm{tail}}),$$\n\n"
        "where $w_i$ are the cached words, $q$ is the student's softmax over *all* words, and $q_{\\mathrm{tail}}$ what it "
        "gives to words that are not cached. The loss never exceeds the whole KL, and equals it if all words are kept.\n\n"
        "`student [N, V]` logits; `values [N, k]` log-probabilities, best first; `ids [N, k]` int32, each word once; "
        "`tail [N]` log-mass of the others, `-inf` where there is none, which then counts as nothing (k may be V). "
        "Floats are float32 or bfloat16. Returns `[N]` float32. Logits may be as large as 10,000. The gradient with "
        "respect to `student` is checked."
    ),
    difficulty=4,
    minutes=30,
    points=15,
    hints=(
        "Take the student's log_softmax over the whole vocabulary first. Then jnp.take_along_axis with the ids gives the "
        "log-probabilities of the cached words, in the order of the values.",
        "The student's tail is a sum of probabilities, given as their logarithms: a logsumexp over the words that are not "
        "cached. Which words to leave out a mask [N, V] can say; -inf, or a very negative number, leaves them out.",
        "0 * (-inf) is NaN, and jnp.where around it cures the value only: the branch that is not taken still has a "
        "derivative. Replace the -inf by a harmless number before anything is computed with it.",
    ),
    outputs=(Output("loss", "float32"),),
    oracle=topk_oracle,
    gradient=asked_gradient,
    cases=(
        Case("first shape", lambda: cached_arguments(511, 4, 7, 3), gradient=True),
        Case("no mass left", lambda: cached_arguments(512, 4, 7, 3, none_left=(1, 2)), gradient=True),
        Case("extreme inputs", extreme_arguments, gradient=True, absolute=LARGE),
        Case("all words cached", lambda: cached_arguments(513, 3, 5, 5), gradient=True),
        Case("bfloat16", lambda: in_bfloat16(cached_arguments(514, 4, 7, 3)), dtype="float32"),
    ),
    mistakes=(
        Mistake(
            "tail ignored",
            "sums over the cached words only. That is no divergence: it can be negative, and nothing tells the student "
            "how much to leave for the other words.",
            mistaken(lambda g: kl(g.values, g.chosen).sum(axis=1)),
        ),
        Mistake(
            "both renormalised",
            "makes both sum to 1 over the cached words. Then only their ratios count: a student that gives nearly "
            "everything to other words may have a loss of 0.",
            mistaken(renormalised),
        ),
        *(
            Mistake(
                "student renormalised",
                "the softmax of the student is over the cached words alone. What it gives to other words is then not seen; "
                "the softmax is over the whole vocabulary.",
                outputs,
            )
            for outputs in student_renormalised()
        ),
        Mistake(
            "teacher renormalised",
            "makes the teacher sum to 1 over the cached words and leaves the tail out: it then tells the student to give "
            "nothing to all other words, which it never said.",
            mistaken(lambda g: kl(log_softmax(g.values), g.chosen).sum(axis=1)),
        ),
        Mistake(
            "tail spread evenly",
            "shares the tail out evenly among the other words. The teacher said how much they have together and not which "
            "has what; the student would be punished for knowing better. They are one class.",
            mistaken(spread),
        ),
        *(
            Mistake(
                "logarithm of a probability",
                "with large logits a probability underflows to 0, and its logarithm is infinite. Stay with logarithms: "
                "log_softmax for words, logsumexp for a sum of them.",
                outputs,
            )
            for outputs in unstable()
        ),
        *(
            Mistake(
                "log-probabilities for probabilities",
                "the values are logarithms: 0 for certainty, negative else. The weights in front of the brackets are "
                "probabilities, and in the brackets no further logarithm is needed.",
                outputs,
            )
            for outputs in as_probabilities()
        ),
        Mistake(
            "ids ignored",
            "compares with the student's first k words. Which words the values belong to, the ids say.",
            mistaken(first_words),
        ),
        Mistake(
            "logits for log-probabilities",
            "uses the student's logits as they are. They are log-probabilities only up to a constant, different at every "
            "position.",
            mistaken(lambda g: g.loss(take(g.student, g.ids), g.rest + (g.student - g.log_q)[:, 0])),
        ),
        Mistake(
            "KL the other way round",
            "weighs with the student's probabilities. The mean has to be under the teacher: p stands in front of the "
            "brackets and first in them.",
            mistaken(reversed_),
        ),
        Mistake(
            "NaN where no mass is left",
            "where the teacher leaves nothing to other words its tail is -inf, and 0 * (-inf) is NaN. That class counts as "
            "nothing.",
            mistaken(nan_without_tail),
        ),
        *(
            Mistake(
                "tail underflows",
                "computes the student's tail as a probability: added up, or as what is missing to 1. If the student is "
                "certain of a cached word, that is 0 or all rounding error, and its logarithm nonsense. Stay with "
                "logarithms.",
                outputs,
            )
            for outputs in underflowing_tail()
        ),
        *(
            Mistake(
                "an epsilon in the logarithm",
                "no infinity, but a student that gives less than the epsilon is told the same as one that gives as much: it "
                "is hardly corrected where it is badly wrong. Stay with logarithms.",
                outputs,
            )
            for outputs in epsilons()
        ),
        Mistake(
            "NaN gradient where no mass is left",
            "the values are right: the NaN of the empty tail was thrown away. Its derivative was not: jnp.where multiplies "
            "what it does not take by 0, and 0 times infinity is NaN. One such position spoils the whole step.",
            gradient=nan_gradient_without_tail,
        ),
    ),
    wrt=("student",),
)
