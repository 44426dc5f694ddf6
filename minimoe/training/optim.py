"""The optimiser: AdamW, or Muon for the matrices, with warm-up, cosine decay and clipping."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from minimoe.training.muon import muon
from minimoe.training.recipe import Recipe


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Linear warm-up from ``peak / warmup_steps``, then a cosine to ``final_fraction`` of the peak at the last step."""
    warmup = min(recipe.warmup_steps, max(recipe.steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=recipe.learning_rate / max(warmup, 1),
        peak_value=recipe.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(recipe.steps, warmup + 1),
        end_value=recipe.final_fraction * recipe.learning_rate,
    )


def bias_rate(recipe: Recipe) -> optax.Schedule:
    """Step of loss-free balancing: full size from the first step, then a cosine to ``final_fraction`` of it.

    Early on a router can collapse within tens of steps and needs a quick hand; later large steps only make choices
    flicker. DeepSeek-V3 likewise ends with a rate of 0 (section 4.2).
    """
    return optax.cosine_decay_schedule(recipe.router_bias_rate, max(recipe.steps, 1), alpha=recipe.final_fraction)


@functools.cache  # equal recipes share one object, so that programs compiled for one serve the other
def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Clipping by global norm, then the recipe's optimiser; weight decay spares vectors (norm scales)."""
    rate = learning_rate(recipe)
    optimizer = optax.adamw(
        rate,
        b1=recipe.beta1,
        b2=recipe.beta2,
        weight_decay=recipe.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
    )
    if recipe.optimizer == "muon":
        optimizer = muon(rate, recipe.weight_decay, optimizer)
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), optimizer)


class MastersState(NamedTuple):
    """``inner``: of the wrapped optimiser. ``masters``: the parameters in float32."""

    inner: Any
    masters: Any


def with_float32_masters(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """``inner`` for parameters that are stored in bfloat16: it works on float32 copies, its masters.

    A bfloat16 number has 8 bits: a step of less than 1/256 of a weight is rounded to nothing, and a norm whose scale is 1
    would never move. The masters take every step; the stored parameters are their rounded values.

    References:
      Micikevicius et al., `Mixed Precision Training <https://arxiv.org/abs/1710.03740>`_, section 3.1.
    """

    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda array: jnp.array(array, jnp.float32), tree)  # a copy: a step gives its arrays away

    def init(params: Any) -> MastersState:
        masters = widen(params)
        return MastersState(inner.init(masters), masters)

    def update(gradients: Any, state: MastersState, params: Any) -> tuple[Any, MastersState]:
        steps, inner_state = inner.update(widen(gradients), state.inner, state.masters)
        masters = optax.apply_updates(state.masters, steps)
        # The sum of a parameter and this, in float32, is its master; storing it rounds it.
        updates = jax.tree.map(lambda master, param: master - param.astype(jnp.float32), masters, params)
        return updates, MastersState(inner_state, masters)

    return optax.GradientTransformation(init, update)


def optimizer_for(model: nnx.Module, recipe: Recipe) -> nnx.Optimizer:
    """The recipe's optimiser of a model, with float32 masters if some parameter is stored in fewer than 32 bits."""
    transform = make_optimizer(recipe)
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    if any(jnp.dtype(leaf.dtype).itemsize < 4 for leaf in params):
        transform = _masters(recipe)
    return nnx.Optimizer(model, transform, wrt=nnx.Param)


@functools.cache
def _masters(recipe: Recipe) -> optax.GradientTransformation:
    return with_float32_masters(make_optimizer(recipe))
