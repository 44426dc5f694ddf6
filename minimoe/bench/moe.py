"""`minimoe bench moe`: one sparse layer, forward and backward, against a dense layer and against Transformers.

Axes: T tokens, D model width, F expert hidden width, E experts, K experts per token, C = T*K/E mean load. What is timed
is one training step's share of the layer: output, and gradients of the input, the router and both expert matrices. The
load is given: see `tokens_of_load`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import minimoe
from minimoe.bench import mixtral
from minimoe.bench.timing import Timing, alternate, ratio
from minimoe.config import MoEConfig
from minimoe.cost import moe_layer_flops
from minimoe.layers import SwiGLU
from minimoe.model.paths import named_leaves
from minimoe.moe import MoELayer, max_violation, with_dispatch
from minimoe.process import CHOICES, memory_in_words

Answer = dict[str, Any]
ALL = "all"  # the load of a collapsed router: K experts take everything
LOADS = ("0", "0.25", "0.5", "1", ALL)


def measure(
    shape: Mapping[str, int], dispatches: Sequence[str], *, loads: Sequence[str], rounds: int, warmup: int, pause: float
) -> dict[str, Any]:
    """Times one shape.

    Args:
      shape: T, D, F, E and K.
      dispatches: which of our implementations; the first one is checked against Transformers' answers.
      loads: for each of ours, MaxVio as text, or `ALL`. Transformers gets the second of them, or the only one.
      rounds, warmup, pause: see `minimoe.bench.alternate`.

    Returns:
      Plain values: times in ms, time ratios (below 1 is faster than the other), useful GFLOP/s, each load's MaxVio and
      how far the answers differ.
    """
    t, d, f, k = (shape[name] for name in "TDFK")
    layer = layer_of(shape, dispatch=dispatches[0])
    config = layer.config
    dy = jax.random.normal(jax.random.key(1), (t, d))
    tokens = {load: jnp.asarray(tokens_of_load(shape, load)) for load in loads}
    violations = {load: round(float(max_violation(layer(x)[1].load)), 4) for load, x in tokens.items()}
    middle = loads[min(1, len(loads) - 1)]
    ours = {name: sparse_step(with_dispatch(layer, name), dy) for name in dispatches}
    runs = {name: one(tokens[middle]) for name, one in ours.items()}
    reference = mixtral.unaligned(config) or mixtral.unavailable()
    if reference is None:
        runs["grouped_mm"] = _transformers(layer, tokens[middle], dy)
    differences = _differences(runs, dispatches)
    timed: dict[str, Callable[[], object]] = {
        "dense_ffn": _dense(SwiGLU(d, k * f, rngs=nnx.Rngs(0)), tokens[middle], dy)
    }
    timed["matmuls"] = _matmuls(layer, shape)
    timed |= {"grouped_mm": runs["grouped_mm"]} if reference is None else {}
    for name in dispatches:
        timed |= {f"{name}, load {load}": ours[name](x) for load, x in tokens.items()}
    times = alternate(timed, rounds=rounds, warmup=warmup, pause=pause)
    return {
        "shape": dict(shape),
        "memory": memory_in_words(),
        "max_violation": violations,
        "reference": reference or f"measured at load {middle}",
        "results": {name: _result(name, times, config, t) for name in times},
        "differences": differences,
    }


def measure_returning_memory(*arguments: Any, **settings: Any) -> dict[str, Any]:
    """`measure` in another process, which gives freed memory back to the system as Python and glibc do by default."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from minimoe.bench import moe\n"
        "arguments, settings = json.load(sys.stdin); json.dump(moe.measure(*arguments, **settings), sys.stdout)"
    )
    root = str(Path(minimoe.__file__).parent.parent)
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, root],
        input=json.dumps([arguments, settings]),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _result(name: str, times: Mapping[str, Timing], config: MoEConfig, tokens: int) -> dict[str, Any]:
    forward = moe_layer_flops(config, tokens)
    if name in ("dense_ffn", "matmuls"):  # the same experts' work, no router
        forward -= 2.0 * tokens * config.d_model * config.num_experts
    return {
        "ms": times[name].summary_ms(),
        "time_over_dense_ffn": ratio(times[name], times["dense_ffn"]),
        "time_over_matmuls": ratio(times[name], times["matmuls"]),
        "time_over_grouped_mm": ratio(times[name], times["grouped_mm"]) if "grouped_mm" in times else None,
        "useful_gflops": round(3 * forward / times[name].median / 1e9, 2),  # backward costs twice the forward
    }


def layer_of(shape: Mapping[str, int], **settings: Any) -> MoELayer:
    """A layer of these sizes that reads expert e from feature e; ``settings`` are further fields of `MoEConfig`."""
    _, d, f, e, k = (shape[name] for name in "TDFEK")
    layer = MoELayer(MoEConfig(d_model=d, d_expert=f, num_experts=e, top_k=k, **settings), rngs=nnx.Rngs(0))
    layer.router.kernel[...] = 4.0 * jnp.eye(d, e)
    return layer


def tokens_of_load(shape: Mapping[str, int], load: str) -> np.ndarray:
    """Tokens ``[T, D]`` whose first E features choose experts, in such numbers that MaxVio is ``load``.

    Loads fall evenly from ``1 + MaxVio`` times the mean to ``1 - MaxVio`` times it, or `ALL`: the first K experts take
    every token. A MaxVio above 1, or above what T tokens allow, is as large as it can be. Any implementation that reads
    these tokens through the same router sees the same load.

    Example:
      >>> x = tokens_of_load({"T": 6, "D": 4, "F": 8, "E": 3, "K": 1}, "0.5")
      >>> print(np.bincount(x[:, :3].argmax(axis=1)))
      [3 2 1]
    """
    t, d, e, k = (shape[name] for name in "TDEK")
    share = np.linspace(1, -1, e) if e > 1 else np.zeros(1)
    want = (np.arange(e) < k) * t if load == ALL else np.clip(1 + float(load) * share, 0, None) * t * k / e
    end = np.rint(np.cumsum(want)).astype(int)
    end[-1] = t * k
    count = np.minimum(np.diff(end, prepend=0), t)
    while (short := t * k - count.sum()) > 0:  # what did not fit goes to the largest that have room
        largest = np.argmax(np.where(count < t, count, -1))
        count[largest] += min(short, t - count[largest])
    experts = np.repeat(np.arange(e), count)  # a run of one expert is at most T long: no token meets it twice
    rng = np.random.default_rng(0)
    x = rng.normal(size=(t, d))
    x[:, :e] = np.clip(x[:, :e], -2, 2)
    token = rng.permutation(t)[np.arange(t * k) % t]
    x[token, experts] = rng.uniform(3, 4, size=t * k)
    return x.astype(np.float32)


def _matmuls(layer: MoELayer, shape: Mapping[str, int]) -> Callable[[], object]:
    """The layer's six batched matmuls and nothing else, C rows an expert: what a balanced layer cannot go below."""
    t, d, f, e, k = (shape[name] for name in "TDFEK")
    gate_up, down = layer.experts.gate_up_proj[...], layer.experts.down_proj[...]
    keys, mean = jax.random.split(jax.random.key(2), 3), -(-t * k // e)
    rows, hidden, act = (jax.random.normal(key, (e, mean, n)) for key, n in zip(keys, (d, 2 * f, f), strict=True))

    @jax.jit
    def six(rows, hidden, act, gate_up, down):
        return (
            jnp.einsum("ecd,edf->ecf", rows, gate_up),
            jnp.einsum("ecf,efd->ecd", act, down),
            jnp.einsum("ecd,efd->ecf", rows, down),
            jnp.einsum("ecf,ecd->efd", act, rows),
            jnp.einsum("ecd,ecf->edf", rows, hidden),
            jnp.einsum("ecf,edf->ecd", hidden, gate_up),
        )

    return lambda: jax.block_until_ready(six(rows, hidden, act, gate_up, down))


def sparse_step(layer: MoELayer, dy: jax.Array) -> Callable[[jax.Array], Callable[[], Answer]]:
    """For tokens, the step to time; all loads share one compiled program."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def step(params, rest, x, dy):
        y, pull = jax.vjp(lambda params, x: nnx.merge(graphdef, params, rest)(x)[0], params, x)
        return y, *pull(dy.astype(y.dtype))

    def run(x: jax.Array) -> Answer:
        y, grads, dx = jax.block_until_ready(step(params, rest, x, dy))
        return {"y": y, "x": dx, "params": grads}

    return lambda x: lambda: run(x)


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
    ours = answer_arrays(runs[dispatches[0]]())
    others = [*dispatches[1:], *(["grouped_mm"] if "grouped_mm" in runs else [])]
    against = {name: answer_arrays(runs[name]()) for name in others}
    return {
        "largest_value": {key: float(np.abs(value).max()) for key, value in ours.items()},
        "max_abs_difference": {
            name: {key: float(np.abs(value - ours[key]).max()) for key, value in arrays.items()}
            for name, arrays in against.items()
        },
    }


def answer_arrays(answer: Answer) -> dict[str, np.ndarray]:
    """Output and gradients as NumPy arrays by name, in our layout."""
    if "block" in answer:
        grads = mixtral.block_gradients(answer["block"])
        y, dx = answer["y"].detach().numpy()[0], answer["x"].numpy()[0]
    else:
        grads = {name: np.asarray(variable[...]) for name, variable in named_leaves(answer["params"]).items()}
        y, dx = np.asarray(answer["y"]), np.asarray(answer["x"])
    return {"output": y, "grad x": dx} | {f"grad {path}": grad for path, grad in sorted(grads.items())}
