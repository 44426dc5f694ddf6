"""Lesson 01, sparse models: counting parameters, the dense twin, and the layer itself.

Axes: T tokens, D model width, E experts, K experts per token, S shared experts, F expert hidden width (F2 = 2*F).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output

Sizes = tuple[int, int, int, int, int]  # D, F, E, K, S

# Counting. The oracle lists the matrices of a layer and adds up their sizes: every mistake is a list with other entries.

Matrix = tuple[str, int, int]  # what it belongs to, rows, columns


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


# The layer.


def silu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(0.5 * x))  # no overflow on either side


def expert(row: np.ndarray, gate_up: np.ndarray, down: np.ndarray, activation: Callable[..., Any] = silu) -> np.ndarray:
    """One token ``[D]`` through one expert, in float64."""
    gate, up = np.split(row.astype(np.float64) @ gate_up.astype(np.float64), 2)
    return (activation(gate) * up) @ down.astype(np.float64)


def moe_forward_oracle(
    x: Float[np.ndarray, "T D"],
    experts: Int[np.ndarray, "T K"],
    weights: Float[np.ndarray, "T K"],
    gate_up: Float[np.ndarray, "E D F2"],
    down: Float[np.ndarray, "E F D"],
) -> Float[np.ndarray, "T D"]:
    """One assignment at a time."""
    y = np.zeros(x.shape)
    for t, chosen in enumerate(experts):
        for k, e in enumerate(chosen):
            y[t] += float(weights[t, k]) * expert(x[t], gate_up[e], down[e])
    return y


def forward(one: Callable[..., Any]) -> Callable[..., Any]:
    """A mistaken layer: ``one(row, weight, slot, num_slots, gate_up, down, all_weights)`` for each assignment."""

    def outputs(x: Any, experts: Any, weights: Any, gate_up: Any, down: Any) -> np.ndarray:
        y = np.zeros(x.shape)
        for t, chosen in enumerate(experts):
            for k, e in enumerate(chosen):
                y[t] += one(x[t], weights[t].astype(np.float64), k, gate_up[e], down[e])
        return y

    return outputs


def swapped(gate_up: np.ndarray) -> np.ndarray:
    gate, up = np.split(gate_up, 2, axis=-1)
    return np.concatenate([up, gate], axis=-1)


def layer_arguments(
    seed: int, tokens: int, d_model: int, d_expert: int, num_experts: int, top_k: int, scale: float = 1.0
) -> Arguments:
    """Random tokens and experts; weights that do not sum to 1; distinct experts for each token."""
    rng = np.random.default_rng(seed)
    x: Any = scale * rng.normal(size=(tokens, d_model))
    experts = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
    weights: Any = rng.uniform(0.2, 0.9, (tokens, top_k))
    gate_up: Any = rng.normal(size=(num_experts, d_model, 2 * d_expert)) / np.sqrt(d_model)
    down: Any = rng.normal(size=(num_experts, d_expert, d_model)) / np.sqrt(d_expert)
    x, weights, gate_up, down = (array.astype(np.float32) for array in (x, weights, gate_up, down))
    return x, experts.astype(np.int32), weights, gate_up, down


def half_precision(arguments: Arguments) -> Arguments:
    """The same layer in bfloat16, with the combine weights left in float32, as a router returns them."""
    import jax.numpy as jnp

    x, experts, weights, gate_up, down = arguments
    x, gate_up, down = (array.astype(jnp.bfloat16) for array in (x, gate_up, down))
    return x, experts, weights, gate_up, down


MOE_FORWARD = Exercise(
    id="sparse.moe_forward",
    lesson=1,
    title="The sparse layer, given the routing",
    signature="moe_forward(x, experts, weights, gate_up, down)",
    task=(
        "Send each token through its experts and mix what they return:\n\n"
        "$$y_t = \\sum_{k=1}^{K} w_{t,k}\\,\\mathrm{FFN}_{e_{t,k}}(x_t),\\qquad "
        "\\mathrm{FFN}_e(x) = (\\mathrm{silu}(x G_e) \\odot x U_e)\\,D_e$$\n\n"
        "`x [T, D]` float32 or bfloat16; `experts [T, K]` int32, ids in 0..E-1, distinct in a row; `weights [T, K]` "
        "float32, not necessarily summing to 1; `gate_up [E, D, 2F]`, gate in the first F columns and up in the last "
        "F; `down [E, F, D]`. Returns `y [T, D]` in the dtype of `x`. It may be slow: clarity first."
    ),
    difficulty=3,
    minutes=25,
    points=10,
    hints=(
        "Python loops over experts or over slots are fine: E and K are shapes, and shapes are known. What cannot be done "
        "while JAX traces is to look at values, such as experts[0, 0].",
        "Either go expert by expert: run it on all tokens and keep its output where it was chosen. Or go slot by slot: "
        "fetch each token's own matrices with gate_up[experts[:, k]] and use jnp.einsum.",
        "jax.nn.silu and jnp.split(hidden, 2, axis=-1) do the nonlinearity. Multiply by the combine weight *after* the "
        "expert, and cast that weight to x's dtype first, or the result becomes float32.",
    ),
    outputs=(Output("y", "float32"),),
    oracle=moe_forward_oracle,
    cases=(
        Case("first shape", lambda: layer_arguments(101, 5, 4, 6, 3, 2), gradient=True),
        Case("bfloat16", lambda: half_precision(layer_arguments(105, 5, 4, 6, 3, 2)), dtype="bfloat16"),
        Case("extreme inputs", lambda: layer_arguments(104, 5, 4, 6, 3, 2, scale=300.0)),
        Case("one token, other sizes", lambda: layer_arguments(102, 1, 6, 2, 5, 3), gradient=True),
    ),
    mistakes=(
        Mistake(
            "identity",
            "returns its input: no expert is applied. The residual connection around the layer is not part of it.",
            lambda x, experts, weights, gate_up, down: x,
        ),
        Mistake(
            "weights on the inputs",
            "multiplies the tokens before the experts. An expert is not linear, so that is another model (Llama 4 is "
            "built that way); here the weight mixes what the experts return.",
            forward(lambda row, w, k, gate_up, down: expert(row * w[k], gate_up, down)),
        ),
        Mistake(
            "gate and up swapped",
            "silu belongs on the gate, the first half of the columns; the second half is multiplied as it is.",
            forward(lambda row, w, k, gate_up, down: w[k] * expert(row, swapped(gate_up), down)),
        ),
        Mistake(
            "plain mean of the experts",
            "ignores the combine weights: the router then decides who works, but not how much it counts, and gets no "
            "gradient.",
            forward(lambda row, w, k, gate_up, down: expert(row, gate_up, down) / len(w)),
        ),
        Mistake(
            "plain sum of the experts",
            "ignores the combine weights: the router then gets no gradient.",
            forward(lambda row, w, k, gate_up, down: expert(row, gate_up, down)),
        ),
        Mistake(
            "first expert only",
            "uses the first of the K chosen experts and forgets the others.",
            forward(lambda row, w, k, gate_up, down: w[k] * expert(row, gate_up, down) * (k == 0)),
        ),
        Mistake(
            "weights renormalised",
            "divides the combine weights by their sum. Whether they sum to 1 is the router's business; the layer uses "
            "them as they come.",
            forward(lambda row, w, k, gate_up, down: w[k] / w.sum() * expert(row, gate_up, down)),
        ),
        Mistake(
            "no nonlinearity",
            "multiplies gate and up without silu.",
            forward(lambda row, w, k, gate_up, down: w[k] * expert(row, gate_up, down, activation=lambda g: g)),
        ),
        Mistake(
            "sigmoid for silu",
            "silu(x) is x times sigmoid(x), not sigmoid(x).",
            forward(
                lambda row, w, k, gate_up, down: (
                    w[k] * expert(row, gate_up, down, activation=lambda g: 0.5 * (1 + np.tanh(0.5 * g)))
                )
            ),
        ),
    ),
    wrt=("x", "weights"),
)

EXERCISES = (PARAMS, DENSE_WIDTH, MOE_FORWARD)
