"""How much the choice of an expert tells about the kind of text. Axes: N kinds of text (domains), E experts."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def mutual_information(load: Float[Array, "*B N E"]) -> Float[Array, "*B"]:
    """Mutual information of domain and expert, in bits: what one choice of expert tells about the domain.

    ``sum_{n,e} p(n, e) * log2(p(n, e) / (p(n) p(e)))`` with every domain given the same probability 1/N, so that a
    large domain does not count more. 0 if all domains use the experts alike, at most ``log2(min(N, E))``. Domains
    without any assignment are left out.

    Args:
      load: assignments of the tokens of each domain, counts; leading axes are layers or steps, never pooled.

    Returns:
      Bits, float32; 0 for no load. Estimated from few counts it is too high, by about ``(N-1)(E-1) / (2 ln 2 * count)``
      (Miller 1955): use thousands of tokens.

    Example:
      >>> print(mutual_information(jnp.array([[5.0, 0.0], [0.0, 5.0]])), mutual_information(jnp.ones((2, 2))))
      1.0 0.0
    """
    total = load.sum(axis=-1, keepdims=True)
    used = total > 0
    given = jnp.where(used, load / jnp.where(used, total, 1.0), 0.0)  # p(e | n)
    domains = jnp.maximum(used.sum(axis=-2, keepdims=True), 1).astype(load.dtype)
    joint = given / domains
    expected = joint.sum(axis=-2, keepdims=True) * used.astype(load.dtype) / domains
    ratio = jnp.where(joint > 0, joint / jnp.where(joint > 0, expected, 1.0), 1.0)
    return (joint * jnp.log2(ratio)).sum(axis=(-1, -2))
