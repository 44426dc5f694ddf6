"""Lesson 01, second exercise: the dense layer that spends the same operations on a token.

Axes: D model width, F expert hidden width, E experts, K experts per token, S shared experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minimoe.exercises.lesson01_params import layer_matrices, met_by_one_token, size, without
from minimoe.exercises.record import Case, Exercise, Mistake, Output


def dense_width_oracle(
    d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared_experts: int
) -> tuple[int, int, int]:
    every = layer_matrices(d_model, d_expert, num_experts, num_shared_experts)
    active = met_by_one_token(every, num_experts, top_k)
    width = sum(rows for _, rows, _ in without(active, "router")[2::3])  # every third matrix leads back down
    return width, 2 * size(active), 2 * size([("dense", d_model, width)] * 3)


def widths(
    width: Callable[..., int], per_matrix: int = 3, per_multiply: int = 2, router: bool = True
) -> Callable[..., Any]:
    """A mistaken answer: another width, matrices an expert, FLOPs a multiply-add, or no router."""

    def outputs(*sizes: int) -> tuple[int, int, int]:
        d_model, _, num_experts, _, _ = sizes
        _, sparse, _ = dense_width_oracle(*sizes)
        routing = 2 * d_model * num_experts
        sparse = (sparse - routing) * per_matrix // 3 + (routing if router else 0)
        columns = width(*sizes)
        return columns, sparse * per_multiply // 2, per_multiply * per_matrix * d_model * columns

    return outputs


def right_width(*sizes: int) -> int:
    return dense_width_oracle(*sizes)[0]


DENSE_WIDTH = Exercise(
    id="sparse.dense_width",
    lesson=1,
    title="The dense twin of equal active FLOPs",
    signature="dense_width(d_model, d_expert, num_experts, top_k, num_shared_experts)",
    task=(
        "A fair opponent for a sparse layer is a dense SwiGLU layer of the same width D that spends the same "
        "floating-point operations (FLOPs) per token in its matrices as the experts that a token meets. The router is "
        "the sparse layer's own extra.\n\nTakes five ints; returns `(d_ff, sparse_flops, dense_flops)`: the hidden width "
        "of the dense layer, an int, and the forward FLOPs per token of the sparse layer, **with** its router, and of "
        "the dense one. A multiply-add counts as 2; only matrix products count."
    ),
    difficulty=2,
    minutes=10,
    points=5,
    hints=(
        "A vector times a matrix does one multiply-add for each parameter of the matrix. You have counted parameters "
        "already in sparse.params.",
        "Several narrow networks whose outputs are added compute what one wide network computes. How wide, if one "
        "token meets the chosen experts and the shared ones?",
        "Experts that a token does not meet cost nothing, so E appears in one place only: the router's own matrix. "
        "The two FLOP counts differ by exactly that matrix.",
    ),
    outputs=(Output("d_ff", "int"), Output("sparse_flops", "float"), Output("dense_flops", "float")),
    oracle=dense_width_oracle,
    cases=(
        Case("small", lambda: (8, 6, 4, 2, 1)),
        Case("two shared experts", lambda: (12, 5, 16, 3, 2)),
        Case("no shared expert", lambda: (16, 4, 8, 1, 0)),
        Case("DeepSeek-V4-Pro", lambda: (7168, 3072, 384, 6, 1)),
    ),
    mistakes=(
        Mistake(
            "as wide as all experts",
            "that is the dense layer of equal *stored* size. Per token only the chosen experts compute.",
            widths(lambda d, f, e, k, s: (e + s) * f),
        ),
        Mistake(
            "no shared experts",
            "every token also pays for the shared experts; the twin has to be wider by theirs.",
            widths(lambda d, f, e, k, s: k * f),
        ),
        Mistake(
            "as wide as one expert",
            "a token meets several experts, and pays for each of them.",
            widths(lambda d, f, e, k, s: f),
        ),
        Mistake(
            "one FLOP for a multiply-add",
            "a multiplication and an addition are two operations; hardware is rated that way.",
            widths(right_width, per_multiply=1),
        ),
        Mistake(
            "two matrices an expert",
            "SwiGLU has three: gate, up and down.",
            widths(right_width, per_matrix=2),
        ),
        Mistake(
            "a free router",
            "the width is right, but scoring the experts is a matrix product as well and belongs to the sparse layer.",
            widths(right_width, router=False),
        ),
    ),
    jit=False,
)
