"""The optimiser: AdamW with warm-up, cosine decay and clipping, all from optax."""

from __future__ import annotations

import functools

import jax
import optax

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
    """Clipping by global norm, then AdamW; weight decay spares vectors (norm scales)."""
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.adamw(
            learning_rate(recipe),
            b1=recipe.beta1,
            b2=recipe.beta2,
            weight_decay=recipe.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )
