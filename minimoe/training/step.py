"""One training step. Axes: B batch, L sequence, T = B*L tokens, V vocabulary, E experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import LayerConfig, ModelConfig
from minimoe.layers import as_mask
from minimoe.layers.token_ids import TokenIds, as_labels, spoil
from minimoe.model import ModelOutput, MoETransformer, check_trainable
from minimoe.moe import (
    Routing,
    bias_update,
    load_balance_loss,
    sequence_balance_loss,
    sparse_layers,
    stack_loads,
    z_loss,
)
from minimoe.training.optim import bias_rate
from minimoe.training.recipe import Recipe


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What one step measured, before its update.

    Attributes:
      loss: cross-entropy, nats per token, or what the objective of the step gives.
      balance, z: the two router losses, mean over layers, unweighted.
      grad_norm: global norm before clipping. ok: whether loss and gradient were finite; if not, nothing was updated.
      mtp: cross-entropy of the token after the next, nats per token, unweighted; None without a head for it.
      index: what the indexers lost, nats, mean over layers, unweighted; None where none is taught.
      load: assignments ``[sparse layers, E]``, see `stack_loads` (``[0, 0]`` for a dense model). dropped: share ``[layers]``.
    """

    loss: Float[Array, ""]
    balance: Float[Array, ""]
    z: Float[Array, ""]
    grad_norm: Float[Array, ""]
    ok: Bool[Array, ""]
    load: Float[Array, "layers E"]
    dropped: Float[Array, "layers"]
    mtp: Float[Array, ""] | None = None
    index: Float[Array, ""] | None = None


def lm_loss(logits: Float[Array, "B L V"], targets: TokenIds, where: Bool[Array, "B L"]) -> Float[Array, ""]:
    """Mean cross-entropy over real targets, nats per token; 0 if there are none.

    Args:
      logits: any float dtype.
      targets: the ids ``[B, L]`` that follow each position, of any integer dtype. Where ``where`` is False they may be
        anything, -100 included.
      where: which targets are real.

    Returns:
      A scalar. Under `jax.jit` it is NaN if a real target is no id of the vocabulary.

    Raises:
      UserError: for such a target where values are known, naming it; for a mask of another shape or dtype.

    Example:
      >>> targets = jnp.array([[1, -100]])
      >>> print(f"{lm_loss(jnp.zeros((1, 2, 4)), targets, where=targets >= 0):.4f}")  # log 4
      1.3863
    """
    where = as_mask(where, logits.shape[:-1], "lm_loss")
    targets, wrong = as_labels(targets, logits.shape[-1], where, owner="lm_loss")
    losses = spoil(optax.softmax_cross_entropy_with_integer_labels(logits, targets), wrong)
    return jnp.sum(losses, where=where) / jnp.maximum(where.sum(), 1).astype(losses.dtype)


def router_losses(routing: tuple[Routing, ...], where: Bool[Array, "T"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Load-balance loss and z-loss, each a mean over layers; zeros for a dense model."""
    if not routing:
        return jnp.zeros(()), jnp.zeros(())
    balance = [load_balance_loss(r.probs, r.experts, where=where) for r in routing]
    z = [z_loss(r.logits, where=where) for r in routing]
    return jnp.stack(balance).mean(), jnp.stack(z).mean()


def sequence_loss(routing: tuple[Routing, ...], where: Bool[Array, "B L"]) -> Float[Array, ""]:
    """`sequence_balance_loss` with a row of the batch as a sequence, mean over layers; 0 for a dense model."""
    if not routing:
        return jnp.zeros(())
    batch, length = where.shape
    segments = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), length)
    flat = where.reshape(-1)
    return jnp.stack([sequence_balance_loss(r.probs, r.experts, segments, batch, where=flat) for r in routing]).mean()


def mtp_loss(logits: Float[Array, "B L V"], targets: Int[Array, "B L"], where: Bool[Array, "B L"]) -> Float[Array, ""]:
    """`lm_loss` of the token after the next: the targets moved on by one place.

    The last position has no such target within the batch. A position counts if its own target and the one after it do.

    Args:
      logits: of the token after the next at each position. targets: of the next token. where: which of those are real.

    Example:
      >>> targets = jnp.array([[1, 2, 3]])
      >>> print(f"{mtp_loss(jnp.zeros((1, 3, 4)), targets, targets > 0):.4f}")  # log 4
      1.3863
    """
    return lm_loss(logits[:, :-1], targets[:, 1:], where[:, :-1] & where[:, 1:])


def noise_streams(config: ModelConfig, key: Array) -> nnx.Rngs | None:
    """The random streams a training step of this model draws from: ``dropout``, ``routing``; None if neither."""
    streams = {"dropout": key} if config.dropout else {}
    if any(layer.moe and layer.moe.facts.uses_noise for layer in (*config.layer_counts, *_mtp_layer(config))):
        streams["routing"] = jax.random.fold_in(key, 1)
    return nnx.Rngs(**streams) if streams else None


def _mtp_layer(config: ModelConfig) -> tuple[LayerConfig, ...]:
    return () if config.mtp_layer is None else (config.mtp_layer,)


def update_router_biases(model: MoETransformer, routing: tuple[Routing, ...], rate: float | Float[Array, ""]) -> None:
    """Moves the selection bias of layers that read one by their load in this batch; outside the gradient.

    The block of a head for multi-token prediction is the last layer. A step that did not run it has no record for it.
    """
    for layer, record in zip(sparse_layers(model)[: len(routing)], routing, strict=True):
        if not layer.config.facts.uses_bias:
            continue
        layer.router.bias[...] = bias_update(layer.router.bias[...], record.load, rate)


# Maps the parameters to those that the forward pass uses; equal transforms should compare equal, like recipes.
TransformParams = Callable[[nnx.State], nnx.State]
# (output, targets, where, extra) -> scalar: what a step lowers in place of `lm_loss`. Equal ones should compare equal.
Objective = Callable[[ModelOutput, Array, Array, Any], Array]


@nnx.jit(static_argnames=("recipe", "transform_params", "objective"), donate_argnames=("model", "optimizer"))
def train_step(
    model: MoETransformer,
    optimizer: nnx.Optimizer,
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    where: Bool[Array, "B L"],
    dropout_key: Array,
    *,
    recipe: Recipe,
    transform_params: TransformParams | None = None,
    objective: Objective | None = None,
    extra: Any = None,
) -> StepMetrics:
    """Loss, gradient, optimiser, router biases; model and optimiser change in place.

    A step whose loss or gradient is not finite leaves every weight, moment and bias as it was and says so in ``ok``:
    the state in memory is always the last good one.

    With ``transform_params`` the loss is that of the transformed parameters, and its gradient goes through the
    transform to the parameters themselves: the way in for quantization-aware training.

    With ``objective(output, targets, where, extra)`` that is lowered instead of `lm_loss`: the way in for distillation.
    It is static; ``extra`` is the pytree of arrays (tuples, dicts) that it needs at this step, say what a teacher thinks
    of the batch. Router losses are added to it.

    A model with ``config.mtp`` also learns the token after the next: `mtp_loss` times ``recipe.mtp_weight`` is added,
    whatever the objective. With a weight of 0 its head is not computed.
    """
    check_trainable(model)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    looks_ahead = model.config.mtp is not None and recipe.mtp_weight > 0
    before = jax.tree.map(lambda array: array, nnx.state((model, optimizer)))  # a copy: the update writes in place

    def loss_fn(params):
        rngs = noise_streams(model.config, dropout_key)
        used = params if transform_params is None else transform_params(params)
        output = nnx.merge(graphdef, used, rest).forward(
            tokens, where=where, rngs=rngs, next_tokens=targets if looks_ahead else None
        )
        routing = output.routing
        loss = lm_loss(output.logits, targets, where) if objective is None else objective(output, targets, where, extra)
        balance, z = router_losses(routing, where.reshape(-1))
        total = loss + recipe.balance_weight * balance + recipe.z_weight * z
        if recipe.sequence_balance_weight:  # not logged, so not computed for nothing
            total = total + recipe.sequence_balance_weight * sequence_loss(routing, where)
        ahead = None
        if looks_ahead:
            ahead = mtp_loss(output.mtp_logits, targets, where)
            total = total + recipe.mtp_weight * ahead
        return total, (loss, balance, z, routing, ahead, output.index_loss)

    (_, (loss, balance, z, routing, ahead, index)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    grad_norm = optax.tree.norm(jax.tree.map(lambda array: array.astype(jnp.float32), grads))
    ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int counts and floats
        optimizer.update(model, grads)
        rate = bias_rate(recipe)(optimizer.step[...])
    if recipe.router_bias_rate:
        update_router_biases(model, routing, rate)
    after = nnx.state((model, optimizer))
    nnx.update((model, optimizer), jax.tree.map(lambda new, old: jnp.where(ok, new, old), after, before))
    load = stack_loads([r.load for r in routing]) if routing else jnp.zeros((0, 0))
    dropped = jnp.stack([r.dropped for r in routing]) if routing else jnp.zeros(0)
    return StepMetrics(loss, balance, z, grad_norm, ok, load, dropped, ahead, index)
