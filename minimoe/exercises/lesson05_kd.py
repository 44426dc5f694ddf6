"""Lesson 05, first exercise: hard labels and a teacher's soft targets in one loss.

Axes: N positions, V words. p is the teacher's distribution, q the student's, T the temperature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Int

from minimoe.exercises.numeric import cotangent
from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output

LARGE = 2e-3  # float32 numbers near 10,000 lie 1e-3 apart: what a right answer may lose that subtracts a logsumexp
LogProbs = Callable[[np.ndarray], np.ndarray]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kd_oracle(
    student: Float[np.ndarray, "N V"],
    teacher: Float[np.ndarray, "N V"],
    labels: Int[np.ndarray, "N"],
    mask: Bool[np.ndarray, "N"],
    temperature: int | float,
    alpha: int | float,
) -> Float[np.ndarray, "N"]:
    """Position by position and word by word."""
    losses = np.zeros(len(labels))
    for n, (mine, other) in enumerate(zip(student, teacher, strict=True)):
        if not mask[n]:
            continue
        hard = -log_softmax(mine)[labels[n]]
        log_q, log_p = log_softmax(mine / temperature), log_softmax(other / temperature)
        soft = sum(np.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))
        losses[n] = (1 - alpha) * hard + alpha * temperature**2 * soft
    return losses


def asked_gradient(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    temperature: int | float,
    alpha: int | float,
) -> Arrays:
    """That of the formula for the student, exact also where differences are not; none for the teacher."""
    q, p = np.exp(log_softmax(student / temperature)), np.exp(log_softmax(teacher / temperature))
    hard = np.exp(log_softmax(student)) - (np.arange(student.shape[1]) == labels[:, None])
    weights = (cotangent(labels.shape) * mask)[:, None]
    return weights * ((1 - alpha) * hard + alpha * temperature * (q - p)), np.zeros_like(teacher)


# What can go wrong: each part of the formula, and the logarithms.


@dataclasses.dataclass(frozen=True)
class Given:
    """The arguments of one case, logits in float64, and the parts of the loss."""

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    temperature: int | float
    alpha: int | float

    def hard(self, temperature: int | float = 1.0, log_probs: LogProbs = log_softmax) -> np.ndarray:
        return -log_probs(self.student / temperature)[np.arange(len(self.labels)), self.labels]

    def logs(self, log_probs: LogProbs = log_softmax) -> tuple[np.ndarray, np.ndarray]:
        """log q and log p at the temperature."""
        return log_probs(self.student / self.temperature), log_probs(self.teacher / self.temperature)

    def soft(self) -> np.ndarray:
        return forward(*self.logs())

    def mixed(self, hard: Any = None, soft: Any = None, factor: int | float | None = None) -> np.ndarray:
        """The loss with one part replaced."""
        hard, soft = self.hard() if hard is None else hard, self.soft() if soft is None else soft
        factor = self.temperature**2 if factor is None else factor
        return np.asarray((1 - self.alpha) * hard + self.alpha * factor * soft)


def forward(log_q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))


def guarded(log_q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """0 for words without probability, as ``jax.scipy.special.rel_entr`` has it."""
    return np.where(np.exp(log_p) > 0, np.exp(log_p) * (log_p - log_q), 0.0).sum(axis=-1)


def masked(losses: np.ndarray, mask: np.ndarray) -> Any:
    return np.where(mask, losses, 0.0)


def mistaken(loss: Callable[[Given], Any], finish: Callable[[Any, np.ndarray], Any] = masked) -> Callable[..., Any]:
    """A mistaken function: another loss, or another end than the mask."""

    def outputs(student: np.ndarray, teacher: np.ndarray, *rest: Any) -> Any:
        given = Given(student.astype(np.float64), teacher.astype(np.float64), *rest)
        return finish(loss(given), given.mask)

    return outputs


def half_tempered() -> Iterator[Callable[..., Any]]:
    """The temperature on the student's logits only, and on the teacher's only."""
    yield mistaken(lambda g: g.mixed(soft=forward(g.logs()[0], log_softmax(g.teacher))))
    yield mistaken(lambda g: g.mixed(soft=forward(log_softmax(g.student), g.logs()[1])))


def reductions() -> Iterator[Callable[[np.ndarray, np.ndarray], Any]]:
    yield lambda losses, mask: losses[mask].mean()
    yield lambda losses, mask: losses[mask].sum()
    yield lambda losses, mask: masked(losses, mask).mean()
    yield lambda losses, mask: losses.mean()


def log_of_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.log(shifted / shifted.sum(axis=-1, keepdims=True))


def log_of_exp(logits: np.ndarray) -> np.ndarray:
    return np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))


def minus_log_sum(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


UNSTABLE: tuple[LogProbs, ...] = (log_of_softmax, log_of_exp, minus_log_sum)
EPSILONS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)


def padded(epsilon: float) -> LogProbs:
    return lambda logits: np.log(np.exp(log_softmax(logits)) + epsilon)


def unstable() -> Iterator[Callable[..., Any]]:
    """In all logarithms, in one term only, and with words of no probability left out."""
    for log in UNSTABLE:
        for soft in (forward, guarded):
            yield mistaken(lambda g, log=log, soft=soft: g.mixed(g.hard(log_probs=log), soft(*g.logs(log))))
            yield mistaken(lambda g, log=log, soft=soft: g.mixed(soft=soft(*g.logs(log))))
        yield mistaken(lambda g, log=log: g.mixed(g.hard(log_probs=log)))


def epsilons() -> Iterator[Callable[..., Any]]:
    for log in map(padded, EPSILONS):
        yield mistaken(lambda g, log=log: g.mixed(g.hard(log_probs=log), forward(*g.logs(log))))
        yield mistaken(lambda g, log=log: g.mixed(soft=forward(*g.logs(log))))


def teacher_learns(arguments: Arguments, expected: Arrays) -> Arrays:
    student, teacher, *rest = arguments
    given = Given(student.astype(np.float64), teacher.astype(np.float64), *rest)
    log_q, log_p = given.logs()
    slope = np.exp(log_p) * (log_p - log_q - given.soft()[:, None])
    weights = cotangent(given.labels.shape) * given.mask * given.alpha * given.temperature
    return expected[0], weights[:, None] * slope


def kd_arguments(seed: int, positions: int, words: int, temperature: float, alpha: float) -> Arguments:
    """Logits of any size, as two models have them, and two positions of padding."""
    rng = np.random.default_rng(seed)
    student = rng.normal(0.5, 1.5, (positions, words)).astype(np.float32)
    teacher = rng.normal(-1.0, 2.0, (positions, words)).astype(np.float32)
    mask = np.ones(positions, bool)
    mask[[1, -1]] = False
    return student, teacher, rng.integers(0, words, positions).astype(np.int32), mask, temperature, alpha


def extreme_arguments() -> Arguments:
    """Logits of 10,000: certain and right, certain and wrong, certain of two words, and far from 0 but ordinary."""
    big = 1e4
    student = [
        [big, 0, 0, -big, 0],
        [-big, big, 0, 0, 0],
        [big, big, -big, -big, 0],
        [-big, 1 - big, -big, 2 - big, 3 - big],
        [0, 0, 0, 0, big],
        [0, 0, big, 0, -big],
    ]
    teacher = [
        [big, 0, 0, -big, 0],
        [big, -big, 0, 0, 0],
        [1, 2, -big, -big, -big],
        [big, big - 2, big, big, big - 1],
        [-big, -big, big, 0, 0],
        [2, 0, 1, 0, -big],
    ]
    labels = np.array([0, 0, 1, 3, 2, 4], np.int32)
    return np.array(student, np.float32), np.array(teacher, np.float32), labels, np.ones(6, bool), 2.0, 0.25


def in_bfloat16(arguments: Arguments) -> Arguments:
    """The same with the floating arrays in bfloat16."""
    floating = [isinstance(value, np.ndarray) and value.dtype.kind == "f" for value in arguments]
    return tuple(v.astype(ml_dtypes.bfloat16) if f else v for v, f in zip(arguments, floating, strict=True))


# Name and message of two mistakes that the third exercise knows too.

LOGARITHM_OF_A_PROBABILITY = (
    "logarithm of a probability",
    "with large logits an exp underflows to 0 or overflows, and the logarithm of the probability made from it "
    "is infinite. The logarithm can be had without the probability.",
)
THE_TEACHER_LEARNS = (
    "the teacher learns",
    "the values are right, but a gradient reaches the teacher's logits. If both models are in one program, the "
    "teacher would come to meet the student.",
)

SOFT_TARGETS = Exercise(
    id="distillation.kd",
    lesson=5,
    title="Hard labels and soft targets",
    signature="kd(student, teacher, labels, mask, temperature, alpha)",
    task=(
        "Hinton's loss (arXiv 1503.02531, section 2): the student learns from the word that really follows and from all "
        "that the teacher thinks of the others,\n\n"
        "$$\\ell = (1 - \\alpha) \\cdot \\bigl(-\\log q_y\\bigr) \\; + \\; "
        "\\alpha \\, T^2 \\sum_v p^T_v \\, (\\log p^T_v - \\log q^T_v),$$\n\n"
        "where $p^T$ and $q^T$ are teacher and student with logits divided by the temperature $T$, and $q$ without an "
        "index is the student at temperature 1.\n\n"
        "`student [N, V]` and `teacher [N, V]` logits, float32 or bfloat16; `labels [N]` int32, the words y; `mask [N]` "
        "bool, False at padding; `temperature` (above 0) and `alpha` (0 to 1) Python numbers. Returns **one number a "
        "position**, `[N]` float32 whatever the logits are, 0 at padding. Logits may be as large as 10,000. The gradient "
        "goes to the student; the teacher gets none."
    ),
    difficulty=2,
    minutes=15,
    points=10,
    hints=(
        "There are three distributions: the student at temperature 1 for the labels, the student at T and the teacher at "
        "T for the divergence. Which one stands in front of the bracket, and which in front of the logarithm?",
        "A probability that underflows to 0 has a logarithm of minus infinity, and 0 times infinity is NaN. "
        "jax.nn.log_softmax gives logarithms that never were probabilities; exp of them is what you weigh with.",
        "Sum over words only: positions are not averaged here. jnp.where(mask, ..., 0.0) does the padding. And "
        "jax.lax.stop_gradient around the teacher's logits, in the first line, keeps it as it is.",
    ),
    outputs=(Output("loss", "float32"),),
    oracle=kd_oracle,
    gradient=asked_gradient,
    cases=(
        Case("first shape", lambda: kd_arguments(501, 6, 5, 2.0, 0.25), gradient=True),
        Case("extreme inputs", extreme_arguments, gradient=True, absolute=LARGE),
        Case("other sizes", lambda: kd_arguments(502, 4, 9, 1.5, 0.75), gradient=True),
        Case("bfloat16", lambda: in_bfloat16(kd_arguments(503, 4, 9, 4.0, 0.75)), dtype="float32"),
    ),
    mistakes=(
        Mistake(
            "T squared forgotten",
            "the soft part is not multiplied by T squared. Its gradient shrinks as 1/T squared, so with a higher "
            "temperature the teacher would fall silent beside the labels.",
            mistaken(lambda g: g.mixed(factor=1.0)),
        ),
        Mistake(
            "T for T squared",
            "the soft part is multiplied by T once. One division by T comes from the student's logits, the other from "
            "the difference of the probabilities, which gets smaller too.",
            mistaken(lambda g: g.mixed(factor=g.temperature)),
        ),
        Mistake(
            "T squared on both terms",
            "the labels' term is multiplied by T squared as well. It is taken at temperature 1, and nothing in it shrank.",
            mistaken(lambda g: g.mixed(g.hard() * g.temperature**2)),
        ),
        Mistake(
            "KL the other way round",
            "computes KL(q || p). The mean has to be under the teacher: p stands in front of the bracket and first in it.",
            mistaken(lambda g: g.mixed(soft=forward(*g.logs()[::-1]))),
        ),
        *(
            Mistake(
                "temperature on one model only",
                "compares a softened distribution with one that is not. A student equal to its teacher would be "
                "pulled away from it: both logits are divided by T.",
                outputs,
            )
            for outputs in half_tempered()
        ),
        Mistake(
            "no temperature",
            "the divergence is taken at temperature 1. Dividing by T is what lets the teacher's second best words be seen.",
            mistaken(lambda g: g.mixed(soft=forward(log_softmax(g.student), log_softmax(g.teacher)))),
        ),
        Mistake(
            "labels at the temperature",
            "the labels' term uses logits divided by T. The student is used at temperature 1, so that is where the labels "
            "have to be likely.",
            mistaken(lambda g: g.mixed(g.hard(g.temperature))),
        ),
        Mistake(
            "alpha on the labels",
            "alpha is the weight of the teacher here, 1 - alpha that of the labels.",
            mistaken(lambda g: dataclasses.replace(g, alpha=1 - g.alpha).mixed()),
        ),
        Mistake(
            "cross-entropy for KL",
            "the soft part is the cross-entropy with the teacher. Its gradient is the same, but the teacher's own entropy "
            "is still in it, so it is not 0 when student and teacher agree.",
            mistaken(lambda g: g.mixed(soft=-(np.exp(g.logs()[1]) * g.logs()[0]).sum(axis=1))),
        ),
        Mistake(
            "mean over the vocabulary",
            "the divergence is a sum over words. A mean makes it smaller the more words there are, and the teacher falls "
            "silent beside the labels.",
            mistaken(lambda g: g.mixed(soft=g.soft() / g.student.shape[1])),
        ),
        *(
            Mistake(
                "reduced to one number",
                "one number for each position is asked for. Whoever calls this knows how many positions are real, and "
                "divides by that; a mean that counts padding depends on how long the other rows are.",
                mistaken(Given.mixed, finish),
            )
            for finish in reductions()
        ),
        Mistake(
            "padding counted",
            "positions of padding have a loss. Nothing follows there, and the student would learn to imitate the teacher "
            "on it.",
            mistaken(Given.mixed, lambda losses, mask: losses),
        ),
        *(Mistake(*LOGARITHM_OF_A_PROBABILITY, outputs) for outputs in unstable()),
        *(
            Mistake(
                "an epsilon in the logarithm",
                "no infinity, but a word that is less likely than the epsilon costs as much as one that is as likely: a "
                "student that is badly wrong is hardly corrected. The logarithm can be had without the probability.",
                outputs,
            )
            for outputs in epsilons()
        ),
        Mistake(*THE_TEACHER_LEARNS, gradient=teacher_learns),
    ),
    wrt=("student", "teacher"),
)
