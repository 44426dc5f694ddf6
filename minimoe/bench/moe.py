"""`minimoe bench moe`: one sparse layer, forward and backward, against a dense layer and against Transformers.

Axes: T tokens, D model width, F expert hidden width, E experts, K experts per token. What is timed is one training
step's share of the layer: output, and gradients of the input, the router and both expert matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minimoe.bench import mixtral
from minimoe.bench.timing import Timing, alternate, ratio
from minimoe.config import MoEConfig
from minimoe.cost import moe_layer_flops
from minimoe.layers import SwiGLU
from minimoe.moe import MoELayer, max_violation, with_dispatch

Answer = dict[str, Any]


def measure(
    shape: Mapping[str, int], dispatches: Sequence[str], *, skew: float, rounds: int, warmup: int, pause: float
) -> dict[str, Any]:
    """Times one shape.

    Args:
      shape: T, D, F, E and K.
      dispatches: which of our implementations; the first one is checked against Transformers' answers.
      skew: 0 leaves the load of an untrained router as it is; 1 sends everything to the first K experts.
      rounds, warmup, pause: see `minimoe.bench.alternate`.

    Returns:
      Plain values: times in ms, time ratios (below 1 is faster than the other), useful GFLOP/s, the load's MaxVio and
      how far the answers differ.
    """
    t, d, f, e, k = (shape[name] for name in "TDFEK")
    config = MoEConfig(d_model=d, d_expert=f, num_experts=e, top_k=k, dispatch=dispatches[0])
    layer = MoELayer(config, rngs=nnx.Rngs(0))
    x, dy = jax.random.normal(jax.random.key(1), (2, t, d))
    x = _tilt(layer, x, skew)
    runs = {name: _sparse(with_dispatch(layer, name), x, dy) for name in dispatches}
    runs["dense_ffn"] = _dense(SwiGLU(d, k * f, rngs=nnx.Rngs(0)), x, dy)
    reference = mixtral.unaligned(config) or mixtral.unavailable()
    if reference is None:
        runs["grouped_mm"] = _transformers(layer, x, dy)
    differences = _differences(runs, dispatches)
    times = alternate(runs, rounds=rounds, warmup=warmup, pause=pause)
    routing = layer(x)[1]
    return {
        "shape": dict(shape),
        "max_violation": round(float(max_violation(routing.load)), 4),
        "reference": reference or "measured",
        "results": {name: _result(name, times, config, t) for name in times},
        "differences": differences,
    }


def _result(name: str, times: Mapping[str, Timing], config: MoEConfig, tokens: int) -> dict[str, Any]:
    forward = moe_layer_flops(config, tokens)
    if name == "dense_ffn":  # the same experts' work, no router
        forward -= 2.0 * tokens * config.d_model * config.num_experts
    return {
        "ms": times[name].summary_ms(),
        "time_over_dense_ffn": ratio(times[name], times["dense_ffn"]),
        "time_over_grouped_mm": ratio(times[name], times["grouped_mm"]) if "grouped_mm" in times else None,
        "useful_gflops": round(3 * forward / times[name].median / 1e9, 2),  # backward costs twice the forward
    }


def _tilt(layer: MoELayer, x: jax.Array, skew: float) -> jax.Array:
    """Makes feature 0 constant and lets the router read preferences from it, so that any implementation sees them."""
    if skew == 0:
        return x
    e, k = layer.config.num_experts, layer.config.top_k
    spread = float(layer.router(x).logits.std())  # what the preference must overcome
    preference = -10.0 * skew * spread * np.log2(1 + np.arange(e) // k)
    layer.router.kernel[...] = layer.router.kernel[...].at[0].set(jnp.asarray(preference, jnp.float32))
    return x.at[:, 0].set(1.0)


def _sparse(layer: MoELayer, x: jax.Array, dy: jax.Array) -> Callable[[], Answer]:
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def step(params, rest, x, dy):
        y, pull = jax.vjp(lambda params, x: nnx.merge(graphdef, params, rest)(x)[0], params, x)
        return y, *pull(dy)

    def run() -> Answer:
        y, grads, dx = jax.block_until_ready(step(params, rest, x, dy))
        return {"y": y, "x": dx, "params": grads}

    return run


def _dense(layer: SwiGLU, x: jax.Array, dy: jax.Array) -> Callable[[], Answer]:
    """A SwiGLU of width K*F: the same matmul FLOPs for every token, no choice to make."""
    graphdef, params = nnx.split(layer)

    @jax.jit
    def step(params, x, dy):
        y, pull = jax.vjp(lambda params, x: nnx.merge(graphdef, params)(x), params, x)
        return y, *pull(dy)

    def run() -> Answer:
        y, grads, dx = jax.block_until_ready(step(params, x, dy))
        return {"y": y, "x": dx, "params": grads}

    return run


def _transformers(layer: MoELayer, x: jax.Array, dy: jax.Array) -> Callable[[], Answer]:
    """Transformers' sparse block with the same weights, eager PyTorch as Transformers runs it."""
    block = mixtral.mixtral_block(layer)
    x_torch = mixtral.to_torch(x)[None].requires_grad_()
    dy_torch = mixtral.to_torch(dy)[None]

    def run() -> Answer:
        x_torch.grad = None
        block.zero_grad(set_to_none=True)
        y = block(x_torch)
        y.backward(dy_torch)
        return {"y": y, "x": x_torch.grad, "block": block}

    return run


def _differences(runs: Mapping[str, Callable[[], Answer]], dispatches: Sequence[str]) -> dict[str, Any]:
    """Largest absolute difference of output and gradients from the first dispatch, and the largest value in each."""
    ours = _arrays(runs[dispatches[0]]())
    others = [*dispatches[1:], *(["grouped_mm"] if "grouped_mm" in runs else [])]
    against = {name: _arrays(runs[name]()) for name in others}
    return {
        "largest_value": {key: float(np.abs(value).max()) for key, value in ours.items()},
        "max_abs_difference": {
            name: {key: float(np.abs(value - ours[key]).max()) for key, value in arrays.items()}
            for name, arrays in against.items()
        },
    }


def _arrays(answer: Answer) -> dict[str, np.ndarray]:
    """Output and gradients as NumPy arrays by name, in our layout."""
    if "block" in answer:
        grads = mixtral.block_gradients(answer["block"])
        y, dx = answer["y"].detach().numpy()[0], answer["x"].numpy()[0]
    else:
        flat = nnx.to_flat_state(answer["params"])
        grads = {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}
        y, dx = np.asarray(answer["y"]), np.asarray(answer["x"])
    return {"output": y, "grad x": dx} | {f"grad {path}": grad for path, grad in sorted(grads.items())}
