"""One layer learns a book of random facts by heart, in seconds: what the ledger and the tour train while one looks on.

A fact is a name (a random vector) and an answer (one of 16). Nothing can be inferred, so a layer recalls an answer or it
guesses. Layers of all sizes compute equally much for a name.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax

ANSWERS, WIDTH, HIDDEN = 16, 16, 8
LEARNING_RATE = 1e-2


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
