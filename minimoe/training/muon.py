"""Muon, as DeepSeek-V4 uses it: steps whose singular values are all 1, for the matrices of the model.

For a matrix W [n, m] with gradient G (equation numbers are ours):

    M  = 0.95 M + G                                        (1)  momentum
    O  = newton_schulz(0.95 M + G)                         (2)  Nesterov; singular values become 1
    W  = W (1 - rate * decay) - rate * 0.18 sqrt(max(n, m)) O   (3)

An orthogonal [n, m] matrix has a root mean square of ``1 / sqrt(max(n, m))``. Equation 3 therefore moves every weight by
0.18 of the rate, as AdamW does on average, and both share one learning rate. Eight steps of Newton-Schulz bring the
singular values near 1, two gentler ones to within 0.001 of it.

Embedding, output head and whatever is a vector (norms, and the bases and scales of hyper-connections) are left to AdamW.
The rest are matrices or stacks of them, of which each is treated alone: every expert, and its gate and its up.

References:
  Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024.
  Liu et al., `Muon is Scalable for LLM Training <https://arxiv.org/abs/2502.16982>`_: equation 3.
  DeepSeek-AI, DeepSeek-V4 (arXiv 2606.19348), section 2.4: the two stages and the constants.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

MOMENTUM = 0.95
UPDATE_RMS = 0.18
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
ADAMW_MODULES = frozenset({"embed", "head"})
FUSED = "gate_up_proj"  # two matrices side by side on the last axis


def orthogonalize(matrices: Float[Array, "*B n m"]) -> Float[Array, "*B n m"]:
    """The nearest matrix with orthogonal rows (or columns, if there are fewer), for each matrix of a stack alone.

    Newton-Schulz: ``X <- aX + b(X X^T)X + c(X X^T)^2 X``, from X of Frobenius norm 1. Singular values that are then at
    least 3e-4 end within 0.001 of 1.

    Example:
      >>> print(orthogonalize(jnp.array([[3.0, 0.0], [0.0, 0.1]])).round(2))
      [[1. 0.]
       [0. 1.]]
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = jnp.swapaxes(matrices, -1, -2) if tall else matrices  # the smaller Gram matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-20)

    def step(x, coefficients):
        gram = x @ jnp.swapaxes(x, -1, -2)
        return coefficients[0] * x + (coefficients[1] * gram + coefficients[2] * gram @ gram) @ x, None

    x, _ = jax.lax.scan(step, x, jnp.asarray(NEWTON_SCHULZ, x.dtype))
    return jnp.swapaxes(x, -1, -2) if tall else x


def muon_labels(params: Any) -> dict[str, str]:
    """ "muon" or "adamw" for each parameter, by its path and number of axes."""

    def label(name: str, leaf: Any) -> str:
        return "adamw" if leaf.ndim < 2 or ADAMW_MODULES & set(name.split(".")) else "muon"

    return {name: label(name, leaf) for name, leaf in _by_name(params).items()}


def scale_by_orthogonal_steps() -> optax.GradientTransformation:
    """Equations 2 and 3 without rate and decay: steps of root mean square 0.18 with equal singular values."""

    def step(name: str, update: Array) -> Array:
        parts = jnp.stack(jnp.split(update, 2, axis=-1)) if FUSED in name else update[None]  # [parts, *B, n, m]
        steps = orthogonalize(parts) * (UPDATE_RMS * math.sqrt(max(parts.shape[-2:])))
        return jnp.concatenate([*steps], axis=-1)

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(lambda path, u: step(_name(path), u), updates))


def muon(
    rate: optax.Schedule, weight_decay: float, adamw: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Muon for the matrices, ``adamw`` for the rest.

    `optax.contrib.muon` is not used: it corrects the bias of momentum and gradient by different factors, which turns the
    first steps away from equation 2, and its function for the iteration alone is private. `optax.partition` leaves empty
    places in its states, which a checkpoint cannot hold; here each optimiser has a dictionary of its own parameters.
    """
    matrices = optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        scale_by_orthogonal_steps(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    optimizers = {"muon": matrices, "adamw": adamw}

    def parted(tree: Any) -> dict[str, dict[str, Any]]:
        labels = muon_labels(tree)
        return {kind: {n: leaf for n, leaf in _by_name(tree).items() if labels[n] == kind} for kind in optimizers}

    def init(params: Any) -> dict[str, Any]:
        return {kind: optimizers[kind].init(part) for kind, part in parted(params).items()}

    def update(gradients: Any, state: dict[str, Any], params: Any) -> tuple[Any, dict[str, Any]]:
        own = parted(params)
        steps: dict[str, Any] = {}
        new: dict[str, Any] = {}
        for kind, part in parted(gradients).items():
            found, new[kind] = optimizers[kind].update(part, state[kind], own[kind])
            steps |= found
        return jax.tree.map_with_path(lambda path, _: steps[_name(path)], gradients), new

    return optax.GradientTransformation(init, update)


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: Any) -> str:
    """The names along a path of a tree, whichever kind of key each is; a variable's own value adds none."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return ".".join(name for name in names if name not in ("", "value"))
