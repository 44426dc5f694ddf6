"""Lesson 01, first exercise: the parameters of a sparse layer, stored and met by one token.

Axes: D model width, F expert hidden width, E experts, K experts per token, S shared experts.
"""

from __future__ import annotations

from collections.abc import Callable

from minimoe.exercises.record import Case, Exercise, Mistake, Output

# The oracle lists the matrices of a layer and adds up their sizes: every mistake is a list with other entries.

Matrix = tuple[str, int, int]  # what it belongs to, rows, columns
Sizes = tuple[int, int, int, int, int]  # D, F, E, K, S


def layer_matrices(d_model: int, d_expert: int, num_experts: int, num_shared_experts: int) -> list[Matrix]:
    """Every weight matrix of one sparse layer."""
    matrices: list[Matrix] = [("router", d_model, num_experts)]
    for kind, count in (("routed", num_experts), ("shared", num_shared_experts)):
        for _ in range(count):
            matrices += [(kind, d_model, d_expert), (kind, d_model, d_expert), (kind, d_expert, d_model)]
    return matrices


def met_by_one_token(matrices: list[Matrix], num_experts: int, top_k: int) -> list[Matrix]:
    """What is left when a token has chosen ``top_k`` of the routed experts."""
    routed = [matrix for matrix in matrices if matrix[0] == "routed"]
    return [matrix for matrix in matrices if matrix[0] != "routed"] + routed[: len(routed) // num_experts * top_k]


def size(matrices: list[Matrix]) -> int:
    return sum(rows * columns for _, rows, columns in matrices)


def params_oracle(
    d_model: int, d_expert: int, num_experts: int, top_k: int, num_shared_experts: int
) -> tuple[int, int]:
    every = layer_matrices(d_model, d_expert, num_experts, num_shared_experts)
    return size(every), size(met_by_one_token(every, num_experts, top_k))


def counting(change: Callable[..., tuple[list[Matrix], list[Matrix]]]) -> Callable[..., tuple[int, int]]:
    """A mistaken count: ``change(total, active, sizes)`` returns other lists of matrices."""

    def outputs(*sizes: int) -> tuple[int, int]:
        d_model, d_expert, num_experts, top_k, num_shared_experts = sizes
        every = layer_matrices(d_model, d_expert, num_experts, num_shared_experts)
        total, active = change(every, met_by_one_token(every, num_experts, top_k), sizes)
        return size(total), size(active)

    return outputs


def without(matrices: list[Matrix], kind: str) -> list[Matrix]:
    return [matrix for matrix in matrices if matrix[0] != kind]


def two_of_three(matrices: list[Matrix]) -> list[Matrix]:
    ffn = without(matrices, "router")
    return [m for m in matrices if m[0] == "router"] + [m for i, m in enumerate(ffn) if i % 3 != 1]


def router_of_one_row(matrices: list[Matrix], sizes: Sizes) -> list[Matrix]:
    return [*without(matrices, "router"), ("router", 1, sizes[2])]


def narrowed_router(matrices: list[Matrix], sizes: Sizes) -> list[Matrix]:
    return [*without(matrices, "router"), ("router", sizes[0], sizes[3])]


PARAMS = Exercise(
    id="sparse.params",
    lesson=1,
    title="Total and active parameters of a sparse layer",
    signature="params(d_model, d_expert, num_experts, top_k, num_shared_experts)",
    task=(
        "Count the parameters of one Mixture-of-Experts layer without biases. It has a router, which gives each token "
        "one logit for each of the E experts, E routed experts and S shared ones. Every expert is a SwiGLU "
        "feed-forward network of hidden width `d_expert`. A token uses the router, `top_k` of the routed experts and "
        "all shared ones.\n\nTakes five ints; returns `(total, active)`, two ints: what is stored, and what one token "
        "multiplies with."
    ),
    difficulty=1,
    minutes=10,
    points=5,
    hints=(
        "Draw the layer first, and write its shape beside every matrix. A matrix has rows times columns parameters.",
        "SwiGLU has one matrix more than an ordinary feed-forward network, because its hidden layer is a product of two "
        "projections of the input. The router turns a vector of width D into E numbers.",
        "Count the parameters of one expert and call it p. Both answers are the router plus a number of experts times "
        "p; only that number differs between total and active.",
    ),
    outputs=(Output("total", "int"), Output("active", "int")),
    oracle=params_oracle,
    cases=(
        Case("small", lambda: (8, 6, 4, 2, 1)),
        Case("two shared experts", lambda: (12, 5, 16, 3, 2)),
        Case("no shared expert", lambda: (16, 4, 8, 1, 0)),
        Case("every expert chosen", lambda: (4, 3, 2, 2, 1)),
        Case("DeepSeek-V4-Pro", lambda: (7168, 3072, 384, 6, 1)),
    ),
    mistakes=(
        Mistake(
            "two matrices an expert",
            "a SwiGLU expert has three: the hidden layer is silu(gate) * up, and gate and up each have their own.",
            counting(lambda total, active, sizes: (two_of_three(total), two_of_three(active))),
        ),
        Mistake(
            "a router of E numbers",
            "the router is a matrix: each expert has a whole vector that is compared with the token, not one number.",
            counting(lambda total, active, sizes: (router_of_one_row(total, sizes), router_of_one_row(active, sizes))),
        ),
        Mistake(
            "no router",
            "the router has weights too, and every token multiplies with them.",
            counting(lambda total, active, sizes: (without(total, "router"), without(active, "router"))),
        ),
        Mistake(
            "active equals total",
            "the idea of a sparse layer is that a token meets only a few of the experts that are stored.",
            counting(lambda total, active, sizes: (total, total)),
        ),
        Mistake(
            "the shared experts are not active",
            "shared experts are not chosen, they are always on: every token uses them.",
            counting(lambda total, active, sizes: (total, without(active, "shared"))),
        ),
        Mistake(
            "no shared experts",
            "the shared experts are missing, from the total as well as from what is active.",
            counting(lambda total, active, sizes: (without(total, "shared"), without(active, "shared"))),
        ),
        Mistake(
            "only the chosen part of the router is active",
            "the router has to score all experts before it can choose: a token meets all of its columns.",
            counting(lambda total, active, sizes: (total, narrowed_router(active, sizes))),
        ),
        Mistake(
            "the router is not active",
            "the router is stored and also used by every token.",
            counting(lambda total, active, sizes: (total, without(active, "router"))),
        ),
    ),
    jit=False,
)
