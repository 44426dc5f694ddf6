"""Sliding-window attention with a sink: the layers of DeepSeek-V4 that see nothing but the last W tokens.

    W = 4, query at t = 6       0   1   2   3   4   5   6          sink
                                .   .   .   x   x   x   x           x        one softmax over the five

    kept while decoding: a ring of W rows, whatever the length of the sequence

    a_s = exp(q . e_s / sqrt(H)) / (sum over the window + exp(sink)),   o = sum_s a_s e_s

References:
  `DeepSeek-V4 <https://arxiv.org/abs/2606.19348>`_, section 2.3.3. `minimoe.attention.shared_kv` has the rest of the layer.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from minimoe.attention.shared_kv_config import SharedKVConfig

if TYPE_CHECKING:
    from flax import nnx

    from minimoe.attention.shared_kv import SharedKVAttention


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingWindowConfig(SharedKVConfig):
    """A window alone; its arguments are those of `SharedKVConfig`.

    Example:
      >>> sizes = dict(num_heads=64, head_dim=512, rope_dim=64, q_rank=1024, window=128, out_groups=8, out_rank=1024)
      >>> SlidingWindowConfig(**sizes).cache_bytes(1_048_576, "v4")
      74752
    """

    kind: ClassVar[str] = "sliding"

    def build(
        self, d_model: int, *, out_scale: float, dtype: str, param_dtype: str, rngs: nnx.Rngs
    ) -> SharedKVAttention:
        """The module with these sizes."""
        from minimoe.attention.shared_kv import SharedKVAttention

        return SharedKVAttention(self, d_model, out_scale=out_scale, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
