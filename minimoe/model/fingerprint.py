"""The fingerprint of a model: a short text that is equal exactly if all weights are equal."""

from __future__ import annotations

import hashlib

import numpy as np
from flax import nnx


def model_fingerprint(model: nnx.Module) -> str:
    """sha256 of every weight and bias with its name, dtype and shape.

    Example:
      >>> first, again, other = (nnx.Linear(2, 2, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
      >>> model_fingerprint(first) == model_fingerprint(again), model_fingerprint(first) == model_fingerprint(other)
      (True, False)
    """
    digest = hashlib.sha256()
    for path, variable in sorted(nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState))), key=lambda item: item[0]):
        array = np.asarray(variable[...])
        digest.update(repr((path, str(array.dtype), array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
