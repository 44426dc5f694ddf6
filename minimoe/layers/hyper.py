"""Manifold-constrained hyper-connections: n residual streams, which each branch mixes by a doubly stochastic matrix.

A plain residual is ``x + F(x)``. Here the model carries n streams X, and a branch F does this (equation numbers are ours):

    x  = A X                      (1)  read: one weighted sum of the streams
    X' = B X + C F(x)             (2)  write: the streams are mixed, and the output is added to each with a weight

      streams X [n, D]      A [1, n] in (0, 1)     B [n, n], rows and columns sum to 1     C [n, 1] in (0, 2)

             +--------------- B ----------------+
       X ----+                                  +--> X'
             +--- A --- norm --- F --- C -------+

A, B and C depend on the token. One generator makes all three from the normalised streams, in float32:

    x^ = vec(X) / rms(vec(X))                                         (3)  no weights
    [a | c | b] = scale * (x^ W) + base                               (4)  W [n*D, 2n + n^2], three scales, one a part
    A = sigmoid(a) + eps,   C = 2 sigmoid(c),   B = sinkhorn(b)       (5)

Products of doubly stochastic matrices are doubly stochastic, so that no depth makes the streams explode. Before the last
norm the streams are collapsed to one, ``sigmoid(scale * (x^ W) + base) + eps`` times X, with W [n*D, n].

The sizes are in `minimoe.layers.hyper_config`. Axes: B batch, L sequence, D model width, n streams.

References:
  Xie et al., `mHC: Manifold-Constrained Hyper-Connections <https://arxiv.org/abs/2512.24880>`_.
  DeepSeek-AI, DeepSeek-V4 (arXiv 2606.19348), section 2.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from minimoe.layers.hyper_config import HyperConnectionConfig
from minimoe.layers.initializers import fan_in

START_SCALE = 0.01  # of what depends on the token; the base alone decides the start
START_DIAGONAL = 6.0  # of the logits of B: a stream keeps 0.99 of itself


class Mixture(NamedTuple):
    """What one branch does with the streams, float32; ``comb`` is B transposed: row j says where stream j goes."""

    read: Float[Array, "... n"]
    write: Float[Array, "... n"]
    comb: Float[Array, "... n n"]


def sinkhorn(logits: Float[Array, "... n n"], iterations: int, eps: float = 1e-6) -> Float[Array, "... n n"]:
    """A matrix whose rows and columns sum to 1, from any logits.

    A softmax over the last axis, plus ``eps``; columns (axis -2) divided by their sums; then ``iterations - 1`` times rows
    (axis -1) and columns. Columns are normalised last and sum to 1 up to ``eps``. Rows do so to
    1e-4 after 20 iterations where the logits have a standard deviation of 0.5; larger logits need more.

    Example:
      >>> [f"{share:.3f}" for share in sinkhorn(jnp.array([[4.0, 0.0], [0.0, 4.0]]), 20)[0]]
      ['0.982', '0.018']

    References:
      Sinkhorn and Knopp, Concerning nonnegative matrices and doubly stochastic matrices, 1967.
    """

    def normalised(matrix, axis):
        return matrix / (matrix.sum(axis=axis, keepdims=True) + eps)

    def rows_then_columns(matrix, _):
        return normalised(normalised(matrix, 1), 0), None

    first = jax.nn.softmax(logits, axis=-1) + eps
    first = jnp.moveaxis(first.reshape(-1, *logits.shape[-2:]), 0, -1)  # [n, n, T]: long rows, 3 times as fast on a CPU
    found = jax.lax.scan(rows_then_columns, normalised(first, 0), length=iterations - 1)[0]
    return jnp.moveaxis(found, -1, 0).reshape(logits.shape)


def mix_streams(comb: Float[Array, "... n n"], streams: Float[Array, "... n D"]) -> Float[Array, "... n D"]:
    """``out[k] = sum_j comb[j, k] * streams[j]``, which is B X of equation 2."""
    return _weighted(comb, streams)


@jax.custom_jvp
def _weighted(weights: Float[Array, "... n k"], streams: Float[Array, "... n D"]) -> Float[Array, "... k D"]:
    """k sums of n streams, added one after another: a matmul of each token's tiny matrix takes a CPU twice as long.

    Its gradient is that of the matmul, in which sums over D are the fast ones.
    """
    out = weights[..., 0, :, None] * streams[..., 0, None, :]
    for j in range(1, streams.shape[-2]):
        out += weights[..., j, :, None] * streams[..., j, None, :]
    return out


@_weighted.defjvp
def _weighted_jvp(primals, tangents):
    (weights, streams), (d_weights, d_streams) = primals, tangents
    moved = jnp.einsum("...nk,...nd->...kd", d_weights, streams) + jnp.einsum("...nk,...nd->...kd", weights, d_streams)
    return _weighted(weights, streams), moved


def _generate(streams, kernel, scale, base, eps) -> Float[Array, "... outputs"]:
    """Equations 3 and 4. The root multiplies the product, so that normalised streams are never stored."""
    flat = streams.reshape(-1, kernel.shape[0]).astype(jnp.float32)  # [T, n*D]
    root = jax.lax.rsqrt(jnp.square(flat).mean(axis=-1, keepdims=True) + eps)
    raw = jnp.matmul(flat, kernel, precision=jax.lax.Precision.HIGHEST) * root
    return (raw * scale[None, :] + base[None, :]).reshape(*streams.shape[:-2], kernel.shape[1])


class HyperConnection(nnx.Module):
    """Joins one branch to n streams. Its weights are float32 whatever the model's dtypes.

    ``kernel [n*D, 2n + n^2]``, ``base [2n + n^2]`` and ``scale [3]``, in the order read, write, comb. At first A is 1/n, C
    is 1 and B is near the identity: n equal streams then behave as one plain residual.
    """

    def __init__(self, config: HyperConnectionConfig, d_model: int, *, rngs: nnx.Rngs):
        n = config.streams
        self.config = config
        self.kernel = nnx.Param(fan_in()(rngs.params(), (n * d_model, config.outputs), jnp.float32))
        base = (jnp.full(n, -math.log(n - 1)), jnp.zeros(n), START_DIAGONAL * jnp.eye(n).reshape(-1))
        self.base = nnx.Param(jnp.concatenate(base).astype(jnp.float32))
        self.scale = nnx.Param(jnp.full(3, START_SCALE, jnp.float32))

    def mixture(self, streams: Float[Array, "B L n D"]) -> Mixture:
        """A, C and B of each token (equations 3 to 5)."""
        n, eps = self.config.streams, self.config.eps
        scale = jnp.repeat(self.scale[...], np.array((n, n, n * n)), total_repeat_length=self.config.outputs)
        scaled = _generate(streams, self.kernel[...], scale, self.base[...], self.config.norm_eps)
        read, write, comb = jnp.split(scaled, (n, 2 * n), axis=-1)
        comb = sinkhorn(comb.reshape(*comb.shape[:-1], n, n), self.config.sinkhorn_iters, eps)
        return Mixture(jax.nn.sigmoid(read) + eps, 2 * jax.nn.sigmoid(write), comb)

    def read(self, stream: Float[Array, "B L n D"]) -> tuple[Float[Array, "B L D"], Mixture]:
        """What the branch sees (equation 1), and what `write` needs."""
        mixture = self.mixture(stream)
        x = _weighted(mixture.read[..., None], stream.astype(jnp.float32))[..., 0, :]
        return x.astype(stream.dtype), mixture

    def write(
        self, stream: Float[Array, "B L n D"], y: Float[Array, "B L D"], mixture: Mixture
    ) -> Float[Array, "B L n D"]:
        """The streams after the branch gave ``y`` (equation 2)."""
        mixed = mix_streams(mixture.comb, stream.astype(jnp.float32))
        added = mixture.write[..., None] * y[..., None, :].astype(jnp.float32)
        return (mixed + added).astype(stream.dtype)


def equal_streams(x: Float[Array, "B L D"], streams: int) -> Float[Array, "B L n D"]:
    """``x`` in each of n streams."""
    return jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], streams, x.shape[-1]))


class HyperCollapse(nnx.Module):
    """Makes one stream of n before the last norm: ``kernel [n*D, n]``, ``base [n]``, ``scale [1]``; at first the mean."""

    def __init__(self, config: HyperConnectionConfig, d_model: int, *, rngs: nnx.Rngs):
        n = config.streams
        self.config = config
        self.kernel = nnx.Param(fan_in()(rngs.params(), (n * d_model, n), jnp.float32))
        self.base = nnx.Param(jnp.full(n, -math.log(n - 1), jnp.float32))
        self.scale = nnx.Param(jnp.full(1, START_SCALE, jnp.float32))

    def __call__(self, stream: Float[Array, "B L n D"]) -> Float[Array, "B L D"]:
        scale = jnp.repeat(self.scale[...], self.config.streams)
        raw = _generate(stream, self.kernel[...], scale, self.base[...], self.config.norm_eps)
        weights = jax.nn.sigmoid(raw) + self.config.eps
        return _weighted(weights[..., None], stream.astype(jnp.float32))[..., 0, :].astype(stream.dtype)
