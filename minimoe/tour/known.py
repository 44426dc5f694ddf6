"""The tour's facts: a dense and two sparse layers learn the same random facts by heart, in seconds.

A fact is a name (a random vector) and an answer (one of 16). Nothing can be inferred, so a layer recalls an answer or it
guesses. All three layers compute equally much for a name. The task is that of lesson 01.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from minimoe.console import messages

if TYPE_CHECKING:
    import jax

FACTS, ANSWERS, WIDTH, HIDDEN = 2048, 16, 16, 8
STEPS, FAST_STEPS, SEEDS = 200, 40, 3
LEARNING_RATE = 1e-2
CONTESTANTS = {"dense": 0, "8 experts": 8, "32 experts": 32}


def facts_rung(*, fast: bool) -> dict[str, Any]:
    """Trains every contestant with three seeds; all read all facts in every step.

    Returns:
      ``facts``, ``answers``, ``steps``, ``seconds``, and ``ways``: for each contestant the share of facts recalled by
      each seed, and its parameters, total and active.
    """
    from minimoe.config import MoEConfig

    steps, began, ways = FAST_STEPS if fast else STEPS, time.monotonic(), []
    for name, num_experts in CONTESTANTS.items():
        moe = MoEConfig(WIDTH, HIDDEN, max(num_experts, 2), top_k=2, num_shared_experts=1, score="sigmoid")
        recalled = [float(_learn(seed, num_experts, steps)) for seed in range(SEEDS)]
        active = 3 * moe.expert_params + (moe.router_params if num_experts else 0)
        total = (num_experts + 1) * moe.expert_params + moe.router_params if num_experts else active
        ways.append({"name": name, "recalled": recalled, "total_params": total, "active_params": active})
        messages.print(f"facts, {name}: recalls {', '.join(f'{share:.0%}' for share in recalled)} of {FACTS:,}")
    seconds = round(time.monotonic() - began, 1)
    return {"facts": FACTS, "answers": ANSWERS, "steps": steps, "seconds": seconds, "ways": ways}


@functools.cache
def _program(num_experts: int, steps: int) -> Any:
    """From a seed to the share of the facts that a fresh layer recalls after some steps, as one compiled program."""
    import jax
    import optax
    from flax import nnx

    from minimoe.config import MoEConfig
    from minimoe.layers import SwiGLU
    from minimoe.moe import MoELayer

    def learn(seed: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), 3)
        names = jax.random.normal(keys[0], (FACTS, WIDTH))
        answers = jax.random.randint(keys[1], (FACTS,), 0, ANSWERS)
        rngs = nnx.Rngs(keys[2])
        if num_experts:
            moe = MoEConfig(WIDTH, HIDDEN, num_experts, 2, num_shared_experts=1, score="sigmoid", dispatch="dense")
            layer: nnx.Module = MoELayer(moe, rngs=rngs)
        else:
            layer = SwiGLU(WIDTH, 3 * HIDDEN, rngs=rngs)
        graph, params, rest = nnx.split((layer, nnx.Linear(WIDTH, ANSWERS, use_bias=False, rngs=rngs)), nnx.Param, ...)
        optimizer = optax.adam(LEARNING_RATE)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            layer, head = nnx.merge(graph, params, rest)
            out = layer(names)
            logits = head(names + (out[0] if num_experts else out))
            right = (logits.argmax(axis=1) == answers).mean()
            return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean(), right

        def step(state: Any, _: None) -> tuple[Any, None]:
            gradient, _ = jax.grad(loss, has_aux=True)(state[0])
            with jax.numpy_dtype_promotion("standard"):  # optax mixes int counts and floats
                updates, moments = optimizer.update(gradient, state[1])
                return (optax.apply_updates(state[0], updates), moments), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, steps)
        return loss(params)[1]

    return jax.jit(learn)


def _learn(seed: int, num_experts: int, steps: int) -> jax.Array:
    import jax.numpy as jnp

    return _program(num_experts, steps)(jnp.uint32(seed))
