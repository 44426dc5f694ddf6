"""Lesson 05, third exercise: the teacher judges what the student wrote.

Axes: B rows, L positions, V words. p is the teacher's distribution, q the student's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.lesson05_kd import (
    EPSILONS,
    LARGE,
    LOGARITHM_OF_A_PROBABILITY,
    THE_TEACHER_LEARNS,
    UNSTABLE,
    LogProbs,
    in_bfloat16,
    log_softmax,
    padded,
)
from minimoe.exercises.numeric import cotangent
from minimoe.exercises.record import Arguments, Arrays, Case, Exercise, Mistake, Output


def on_policy_oracle(
    student: Float[np.ndarray, "B L V"],
    teacher: Float[np.ndarray, "B L V"],
    tokens: Int[np.ndarray, "B L"],
    prompt_lengths: Int[np.ndarray, "B"],
    written_lengths: Int[np.ndarray, "B"],
) -> Any:
    """Token by token: those that the student wrote, each judged where it was predicted, one place before it stands."""
    losses = []
    for row, (prompt, written) in enumerate(zip(prompt_lengths, written_lengths, strict=True)):
        for place in range(prompt, prompt + written):
            log_q, log_p = log_softmax(student[row, place - 1]), log_softmax(teacher[row, place - 1])
            losses.append(sum(np.exp(a) * (a - b) for a, b in zip(log_q, log_p, strict=True)))
    return np.float64(sum(losses) / max(len(losses), 1))


# What can go wrong: the term at a position, which positions, and the mean.

Term = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Window = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
Mean = Callable[[np.ndarray, np.ndarray], Any]


def reverse(log_q: np.ndarray, log_p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.asarray((np.exp(log_q) * (log_q - log_p)).sum(axis=-1))


def guarded(log_q: np.ndarray, log_p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """0 for words without probability, as ``jax.scipy.special.rel_entr`` has it."""
    return np.where(np.exp(log_q) > 0, np.exp(log_q) * (log_q - log_p), 0.0).sum(axis=-1)


def forward(log_q: np.ndarray, log_p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return reverse(log_p, log_q, tokens)


def sampled(log_q: np.ndarray, log_p: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The ratio at the one token that follows; behind the last there is none that counts."""
    following = np.roll(tokens, -1, axis=1)[:, :, None]
    return np.take_along_axis(log_q - log_p, following, axis=2)[:, :, 0]


def written(place: np.ndarray, prompt: np.ndarray, length: np.ndarray) -> Any:
    return (place >= prompt - 1) & (place < prompt + length - 1)


def over_counted(terms: np.ndarray, counted: np.ndarray) -> Any:
    return terms[counted].sum() / max(counted.sum(), 1)


def by_row(terms: np.ndarray, counted: np.ndarray) -> Any:
    return np.mean([row[mine].sum() / max(mine.sum(), 1) for row, mine in zip(terms, counted, strict=True)])


def mistaken(
    term: Term = reverse, window: Window = written, mean: Mean = over_counted, log_probs: LogProbs = log_softmax
) -> Callable[..., Any]:
    def outputs(
        student: np.ndarray, teacher: np.ndarray, tokens: np.ndarray, prompts: np.ndarray, lengths: np.ndarray
    ) -> Any:
        log_q, log_p = (log_probs(logits.astype(np.float64)) for logits in (student, teacher))
        place = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        return np.float64(mean(term(log_q, log_p, tokens), window(place, prompts[:, None], lengths[:, None])))

    return outputs


def beyond_the_end() -> Iterator[Window]:
    """From the first written token to the end of the row, or to the last place that has a token behind it."""
    yield lambda place, prompt, length: place >= prompt - 1
    yield lambda place, prompt, length: (place >= prompt - 1) & (place < place.shape[1] - 1)


def everywhere() -> Iterator[Window]:
    yield lambda place, prompt, length: place >= 0
    yield lambda place, prompt, length: place < place.shape[1] - 1


def of_all_places() -> Iterator[Mean]:
    """Divided by all positions, or by all that have a token behind them."""
    yield lambda terms, counted: terms[counted].sum() / terms.size
    yield lambda terms, counted: terms[counted].sum() / (terms.size - len(terms))


def one_off() -> Iterator[Window]:
    """One place too many at the end; one too few at the start, and at the end."""
    yield lambda place, prompt, length: (place >= prompt - 1) & (place < prompt + length)
    yield lambda place, prompt, length: (place >= prompt) & (place < prompt + length - 1)
    yield lambda place, prompt, length: (place >= prompt - 1) & (place < prompt + length - 2)


def unstable() -> Iterator[Callable[..., Any]]:
    for log in UNSTABLE:
        yield mistaken(log_probs=log)
        yield mistaken(guarded, log_probs=log)


def judged(arguments: Arguments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log q, log p and the weight of each position in the mean."""
    student, teacher, tokens, prompts, lengths = arguments
    place = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    counted = written(place, prompts[:, None], lengths[:, None])
    weights = cotangent(()) * counted[:, :, None] / max(counted.sum(), 1)
    return log_softmax(student.astype(np.float64)), log_softmax(teacher.astype(np.float64)), weights


def asked_gradient(*arguments: Any) -> Arrays:
    """That of the formula for the student, exact also where differences are not; none for the teacher."""
    log_q, log_p, weights = judged(arguments)
    loss = (np.exp(log_q) * (log_q - log_p)).sum(axis=-1, keepdims=True)
    return weights * np.exp(log_q) * (log_q - log_p - loss), np.zeros_like(log_p)


def teacher_learns(arguments: Arguments, expected: Arrays) -> Arrays:
    log_q, log_p, weights = judged(arguments)
    return expected[0], weights * (np.exp(log_p) - np.exp(log_q))


def student_cut_off(arguments: Arguments, expected: Arrays) -> Arrays:
    return np.zeros_like(expected[0]), expected[1]


def only_the_teacher(arguments: Arguments, expected: Arrays) -> Arrays:
    return np.zeros_like(expected[0]), teacher_learns(arguments, expected)[1]


def rollout_arguments(seed: int, length: int, words: int, prompts: list[int], lengths: list[int]) -> Arguments:
    """Two models on rows of prompt, written tokens and padding; behind the end word 0 stands."""
    rng = np.random.default_rng(seed)
    shape = (len(prompts), length, words)
    student, teacher = rng.normal(1.0, 1.3, shape), rng.normal(-0.5, 1.6, shape)
    tokens = rng.integers(1, words, shape[:2])
    tokens[np.arange(length) >= np.add(prompts, lengths)[:, None]] = 0
    ends = np.array(prompts, np.int32), np.array(lengths, np.int32)
    return student.astype(np.float32), teacher.astype(np.float32), tokens.astype(np.int32), *ends


def extreme_arguments() -> Arguments:
    """Logits of 10,000 at what was written, in agreement and not; in prompts and padding too."""
    big = 1e4
    student, teacher, *rest = rollout_arguments(523, 6, 5, [2, 3, 1], [4, 2, 2])
    student[0, 1:5] = [[big, 0, 0, 0, -big], [0, big, 0, -big, 0], [1, 2, 3, -big, -big], [3 - big, *[-big] * 4]]
    teacher[0, 1:5] = [[big, 0, 0, 0, -big], [-big, 0, big, -big, 0], [0, 1, 0, -big, -big], [big - 1, *[big] * 4]]
    student[1, 0], teacher[1, 1], student[1, 5], teacher[2, 4] = big, -big, -big, big
    student[2, 5, 0] = teacher[2, 5, 1] = big
    return student, teacher, *rest


ON_POLICY = Exercise(
    id="distillation.on_policy",
    lesson=5,
    title="Judged on what the student wrote",
    signature="on_policy_kl(student, teacher, tokens, prompt_lengths, written_lengths)",
    task=(
        "On-policy distillation (arXiv 2306.13649): the student continues prompts, and the teacher says at every token of "
        "it what it would have written there. The loss is the reverse KL over the **whole vocabulary**,\n\n"
        "$$\\ell_{bl} = \\sum_v q_{blv} \\, (\\log q_{blv} - \\log p_{blv}),$$\n\n"
        "and its mean over exactly those positions whose **target** the student wrote, each counting the same. The logits "
        "at position l are about the token at position l + 1.\n\n"
        "`student [B, L, V]` and `teacher [B, L, V]` logits, float32 or bfloat16, as large as 10,000; `tokens [B, L]` "
        "int32: row b holds `prompt_lengths[b]` tokens of prompt (1 or more), then `written_lengths[b]` of the student's "
        "(0 or more), then padding. `prompt_lengths [B]` and `written_lengths [B]` are int32; a row may be full. Returns "
        "a float32 scalar, 0 if nothing was written. The gradient goes to the student; the teacher gets none."
    ),
    difficulty=3,
    minutes=25,
    points=15,
    hints=(
        "Draw one row: prompt of 2, written 3, padding 1. Which positions have logits that are about a written token? The "
        "first is the last of the prompt; how many are there?",
        "jnp.arange(L) compared with the lengths as columns [B, 1] gives the mask [B, L]. Divide the masked sum by the "
        "number of True, but by 1 if there is none.",
        "The drawn token is one sample of what the student might have written; the sum over v takes the mean over all of "
        "them. So the tokens themselves need not be looked at. log_softmax of both, with stop_gradient on the teacher.",
    ),
    outputs=(Output("loss", "float32"),),
    oracle=on_policy_oracle,
    gradient=asked_gradient,
    cases=(
        Case(
            "first shape",
            lambda: rollout_arguments(521, 6, 5, [2, 3, 1], [4, 2, 2]),
            gradient=True,
            absolute=3e-7,  # a gradient that cancels is 0 but for rounding, which no largest value measures
        ),
        Case("a row with nothing written", lambda: rollout_arguments(522, 6, 5, [6, 2, 3], [0, 1, 2]), gradient=True),
        Case("one word written in all", lambda: rollout_arguments(526, 6, 5, [6, 2, 3], [0, 1, 0])),
        Case("nothing written at all", lambda: rollout_arguments(524, 6, 5, [6, 2, 1], [0, 0, 0])),
        Case("extreme inputs", extreme_arguments, gradient=True, absolute=LARGE),
        Case("other sizes", lambda: rollout_arguments(525, 5, 7, [1, 2], [4, 2]), gradient=True),
        Case("bfloat16", lambda: in_bfloat16(rollout_arguments(526, 5, 7, [1, 2], [4, 2])), dtype="float32"),
    ),
    mistakes=(
        Mistake(
            "forward KL",
            "computes KL(p || q). What the student wrote is a sample of q, and the question is whether the teacher would "
            "say it too: the mean is under the student.",
            mistaken(forward),
        ),
        Mistake(
            "one sample for the whole vocabulary",
            "looks at the drawn token only. Its log ratio is right on average, but it varies much and may be negative; the "
            "teacher gave its whole distribution, so use it.",
            mistaken(sampled),
        ),
        Mistake(
            "position of the token",
            "counts the positions where the written tokens stand. There the logits are about the next token: the first "
            "written one is left out, and what comes behind the last is judged instead.",
            mistaken(window=lambda place, prompt, length: (place >= prompt) & (place < prompt + length)),
        ),
        *(
            Mistake(
                "one position too many or too few",
                "as many positions count as tokens were written: the first is the last position of the prompt, and the "
                "last written token has only padding behind it.",
                mistaken(window=window),
            )
            for window in one_off()
        ),
        Mistake(
            "prompt counted",
            "counts targets that belong to the prompt. The student did not write them; nothing on-policy is learnt there.",
            mistaken(window=lambda place, prompt, length: place < prompt + length - 1),
        ),
        *(
            Mistake(
                "padding counted",
                "counts what stands behind the end of the text. Nothing was written there.",
                mistaken(window=window),
            )
            for window in beyond_the_end()
        ),
        *(
            Mistake(
                "everything counted",
                "takes the mean over all positions, prompt and padding too. Only targets that the student wrote count.",
                mistaken(window=window),
            )
            for window in everywhere()
        ),
        *(
            Mistake(
                "divided by all positions",
                "sums the right positions but divides by all. The longer the prompts and the padding, the less is learnt.",
                mistaken(mean=mean),
            )
            for mean in of_all_places()
        ),
        Mistake(
            "sum for mean",
            "adds the positions up: who writes more has a larger loss, and so a larger step.",
            mistaken(mean=lambda terms, counted: terms[counted].sum()),
        ),
        Mistake(
            "mean of the rows' means",
            "averages within rows first, so a token of a short answer counts more than one of a long answer. Here each "
            "written token counts the same.",
            mistaken(mean=by_row),
        ),
        Mistake(
            "0/0 where nothing was written",
            "the mean of no positions is 0/0. It has to be 0, or one step without text makes every weight NaN.",
            mistaken(mean=lambda terms, counted: over_counted(terms, counted) if counted.any() else np.nan),
        ),
        *(Mistake(*LOGARITHM_OF_A_PROBABILITY, outputs) for outputs in unstable()),
        *(
            Mistake(
                "an epsilon in the logarithm",
                "no infinity, but for words that the teacher finds less likely than the epsilon the student is hardly "
                "corrected. The logarithm can be had without the probability.",
                mistaken(log_probs=padded(epsilon)),
            )
            for epsilon in EPSILONS
        ),
        Mistake(*THE_TEACHER_LEARNS, gradient=teacher_learns),
        *(
            Mistake(
                "no gradient for the student",
                "the values are right, but nothing reaches the student: it is held fixed, or its weights q in front of the "
                "bracket are. With those fixed the rest cancels exactly, since probabilities always sum to 1.",
                gradient=gradient,
            )
            for gradient in (student_cut_off, only_the_teacher)
        ),
    ),
    wrt=("student", "teacher"),
)
