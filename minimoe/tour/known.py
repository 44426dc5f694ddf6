"""The tour's facts: a dense and two sparse layers learn the same random facts by heart, in seconds.

A fact is a name (a random vector) and an answer (one of 16). Nothing can be inferred, so a layer recalls an answer or it
guesses. All three layers compute equally much for a name. The task is that of lesson 01. The collapse of `collapsed`
is learned by the same program.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from minimoe.console import messages

if TYPE_CHECKING:
    import jax

ANSWERS, WIDTH, HIDDEN = 16, 16, 8
BOOK, FAST_BOOK = (
    (2048, 200),
    (1024, 100),
)  # facts, and how often each is read: the dense layer cannot hold the smaller one
SEEDS = 3
LEARNING_RATE = 1e-2
CONTESTANTS = {"dense": 0, "8 experts": 8, "32 experts": 32}


def facts_rung(*, fast: bool) -> dict[str, Any]:
    """Trains every contestant with three seeds; all read all facts in every step.

    Returns:
      ``facts``, ``answers``, ``steps``, and ``ways``: for each contestant the share of facts recalled by each seed, its
      parameters, total and active, and the seconds of all its seeds, compilation included.
    """
    from minimoe.config import MoEConfig

    (facts, steps), ways = FAST_BOOK if fast else BOOK, []
    for name, num_experts in CONTESTANTS.items():
        moe = MoEConfig(WIDTH, HIDDEN, max(num_experts, 2), top_k=2, num_shared_experts=1, score="sigmoid")
        began = time.monotonic()
        recalled = [float(learn(seed, num_experts, facts, steps).recalled) for seed in range(SEEDS)]
        seconds = round(time.monotonic() - began, 1)
        active = 3 * moe.expert_params + (moe.router_params if num_experts else 0)
        total = (num_experts + 1) * moe.expert_params + moe.router_params if num_experts else active
        ways.append(
            {"name": name, "recalled": recalled, "total_params": total, "active_params": active, "seconds": seconds}
        )
        messages.print(f"facts, {name}: recalls {', '.join(f'{share:.0%}' for share in recalled)} of {facts:,}")
    return {"facts": facts, "answers": ANSWERS, "steps": steps, "ways": ways}


class Learned(NamedTuple):
    """What a layer recalls at its last step, and how its load went: MaxVio by step (zeros for a dense layer)."""

    recalled: jax.Array
    max_violation: jax.Array


def learn(
    seed: int, num_experts: int, facts: int, steps: int, *, common: float = 0.0, bias_rate: float = 0.0
) -> Learned:
    """A fresh layer learns the book of a seed, all of it in every step.

    Args:
      seed: decides names, answers and initial weights.
      num_experts: 0 for the dense layer.
      facts: in the book. steps: of Adam.
      common: size of the vector that all names share.
      bias_rate: of loss-free balancing at the first step; it falls to zero at the last. 0 is no balancing.
    """
    import jax.numpy as jnp

    return _program(num_experts, facts, steps)(jnp.uint32(seed), jnp.float32(common), jnp.float32(bias_rate))


@functools.cache
def _program(num_experts: int, facts: int, steps: int) -> Any:
    """`learn` for layers of one size, as one compiled program."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from minimoe.config import MoEConfig
    from minimoe.layers import SwiGLU
    from minimoe.moe import MoELayer, RouterBias, bias_update, max_violation

    def run(seed: jax.Array, common: jax.Array, bias_rate: jax.Array) -> Learned:
        key = jax.random.key(seed, impl="unsafe_rbg")  # of JAX's generators the one that compiles in the least time
        of_names, of_answers, of_weights, of_all = jax.random.split(key, 4)
        names = jax.random.normal(of_names, (facts, WIDTH)) + common * jax.random.normal(of_all, (1, WIDTH))
        answers = jax.random.randint(of_answers, (facts,), 0, ANSWERS)
        rngs = nnx.Rngs(of_weights)
        if num_experts:
            moe = MoEConfig(WIDTH, HIDDEN, num_experts, 2, num_shared_experts=1, score="sigmoid", dispatch="dense")
            layer: nnx.Module = MoELayer(moe, rngs=rngs)
        else:
            layer = SwiGLU(WIDTH, 3 * HIDDEN, rngs=rngs)
        head = nnx.Linear(WIDTH, ANSWERS, use_bias=False, rngs=rngs)
        graph, params, biases, rest = nnx.split((layer, head), nnx.Param, RouterBias, ...)
        optimizer = optax.adam(LEARNING_RATE)

        def loss(params: Any, biases: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            layer, head = nnx.merge(graph, params, biases, rest)
            out, load = layer(names), jnp.ones(1)
            if num_experts:
                out, load = out[0], out[1].load
            logits = head(names + out)
            right = (logits.argmax(axis=1) == answers).mean()
            return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean(), (right, load)

        def step(state: Any, index: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            params, moments, biases = state
            gradient, (right, load) = jax.grad(loss, has_aux=True)(params, biases)
            rate = bias_rate * (1 - index / steps)
            biases = jax.tree.map(lambda bias: bias_update(bias, load, rate=rate), biases)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes int counts and floats
                updates, moments = optimizer.update(gradient, moments)
                return (optax.apply_updates(params, updates), moments, biases), (right, max_violation(load))

        first = (params, optimizer.init(params), biases)
        _, (rights, violations) = jax.lax.scan(step, first, jnp.arange(steps, dtype=jnp.float32))
        return Learned(rights[-1], violations)

    return jax.jit(run)
