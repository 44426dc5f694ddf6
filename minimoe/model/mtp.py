"""Multi-token prediction: a head that also predicts the token after the next. Axes: B batch, L sequence, D model width."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.attention import Cache
from minimoe.config import ModelConfig
from minimoe.layers import RMSNorm, fan_in
from minimoe.moe import Routing


class MTPHead(nnx.Module):
    """What the model says about token i+2, once it is told token i+1.

    .. code-block:: text

        h'_i = M [RMSNorm(h_i) ; RMSNorm(Emb(t_{i+1}))]      M: join_proj, 2D -> D; DeepSeek-V3, eq. 21
        h''  = norm(leave(block(h')))                        one block, its own end and norm
        logits of t_{i+2} = the model's output head on h''   embedding and head are the model's own

    ``h_i`` is what the last block of the model gives. With hyper-connections that is n streams, as in DeepSeek-V4: the
    equation holds for each of them, and the block goes on with n.

    Args:
      config: of the model, with ``mtp`` given. block: built from ``config.mtp_layer``.
      rngs: source of the initial weights.

    References:
      DeepSeek-AI, `DeepSeek-V3 Technical Report <https://arxiv.org/abs/2412.19437>`_, section 2.2.
    """

    def __init__(self, config: ModelConfig, block: Any, *, rngs: nnx.Rngs):
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        norm: dict[str, Any] = {"epsilon": config.norm_eps, "rngs": rngs} | dtypes
        width = config.d_model
        self.residual = config.residual
        self.hidden_norm = RMSNorm(width, **norm)
        self.token_norm = RMSNorm(width, **norm)
        self.join_proj = nnx.Linear(2 * width, width, use_bias=False, kernel_init=fan_in(), rngs=rngs, **dtypes)
        self.block = block
        self.leave = config.residual.build_leave(width, rngs=rngs)
        self.norm = RMSNorm(width, **norm)

    def __call__(
        self,
        hidden: Float[Array, "B L ..."],
        embedded: Float[Array, "B L D"],
        next_tokens: Int[Array, "B L"],
        *,
        where: Bool[Array, "B L"] | None = None,
        rngs: nnx.Rngs | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B L D"], Routing | None, Cache | None]:
        """What the output head multiplies.

        Args:
          hidden: the stream of the model at each position, after its last block: ``[B, L, D]``, or ``[B, L, n, D]``.
          embedded: embeddings of ``next_tokens``, the tokens that follow each position.
          where: as for the model. rngs: as for the model. cache: of this head's block.

        Returns:
          The result of the last norm, the routing of the block (None if dense), and the longer cache.
        """
        told = self.residual.enter(self.token_norm(embedded))
        x = self.join_proj(jnp.concatenate([self.hidden_norm(hidden), told], axis=-1))
        x, routing, left = self.block(x, next_tokens, where=where, rngs=rngs, cache=cache)
        return self.norm(self.leave(x)), routing, None if cache is None else left
