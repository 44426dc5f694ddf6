"""The bytes of one row that decoding keeps: in a plain dtype, or as DeepSeek-V4 stores it.

    scheme "v4"   entry of 512, 64 of them rotary   448 fp8 + 64 bfloat16 + 7 scales (one a block of 64) + 1 pad = 584 bytes
                  indexer key of 128                128 fp4 + 4 scales (one a block of 32)                       =  68 bytes

A scale is one byte, a power of two (UE8M0). The uncompressed tails are float32 in every scheme. `minimoe.quant.V4_CACHE`
makes such rows.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16 and float8 by name
import numpy as np

V4 = "v4"


def dtype_bytes(dtype: Any) -> int:
    """Bytes of one number, without loading JAX.

    Example:
      >>> dtype_bytes("bfloat16")
      2
    """
    return np.dtype(dtype).itemsize


def entry_bytes(dim: int, rope_dim: int, dtype: Any) -> int:
    """Of an entry that is key and value at once.

    Example:
      >>> entry_bytes(512, 64, "v4"), entry_bytes(512, 64, "bfloat16")
      (584, 1024)
    """
    if isinstance(dtype, str) and dtype == V4:
        still = dim - rope_dim
        return still + 2 * rope_dim + -(-still // 64) + 1
    return dim * dtype_bytes(dtype)


def index_key_bytes(dim: int, dtype: Any) -> int:
    """Of a key of the indexer.

    Example:
      >>> index_key_bytes(128, "v4")
      68
    """
    if isinstance(dtype, str) and dtype == V4:
        return -(-dim // 2) + -(-dim // 32)
    return dim * dtype_bytes(dtype)
