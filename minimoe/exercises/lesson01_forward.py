"""Lesson 01, third exercise: tokens through the experts that were chosen for them.

Axes: T tokens, D model width, E experts, K experts per token, F expert hidden width (F2 = 2*F).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from minimoe.exercises.record import Arguments, Case, Exercise, Mistake, Output


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


def negative_weights(arguments: Arguments) -> Arguments:
    """The same with every other combine weight below 0: nothing says that an expert may not be subtracted."""
    x, experts, weights, gate_up, down = arguments
    signs = np.resize(np.array([1, -1, -1], np.float32), weights.shape)
    return x, experts, weights * signs, gate_up, down


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
        Case("negative weights", lambda: negative_weights(layer_arguments(106, 5, 4, 6, 3, 2))),
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
