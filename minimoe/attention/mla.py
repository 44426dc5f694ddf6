"""Multi-head latent attention: keys and values of all heads are made from one small vector a token, and only it is kept.

    token h ---+--- kv_a ---> [ latent c (R) | key k' (P) ]      kept: R + P numbers a token, whatever the number of heads
               |                  | norm        | turned by its position
               |                  |             |
               |        kv_b ---> head n:  [ k_n (C) | v_n (U) ]
               |                             |
               +--- q_a, norm, q_b --->   [ q_n (C) | q'_n (P, turned) ]

    query at t sees    c_0 c_1 ... c_t          (causal; every entry is read by all N heads)

Equations, with their numbers in the `DeepSeek-V2 report <https://arxiv.org/abs/2405.04434>`_ (1-11 in that of V3):

    c_t  = norm(W_DKV h_t)                            (9)   the latent, R numbers
    k_n  = W_UK,n c_t,   v_n = W_UV,n c_t             (10, 11)
    q_n  = W_UQ,n norm(W_DQ h_t)                      (12, 13)
    q'_n = RoPE(W_QR,n norm(W_DQ h_t)),  k' = RoPE(W_KR h_t)                       (14, 15)
    o_n  = sum_s softmax_s((q_n . k_n,s + q'_n . k'_s) / sqrt(C + P)) v_n,s        (16-19)

Decoding never makes the keys and values of old tokens. The matrix of the keys moves to the query, that of the values to
the output ("absorbed" form, section 2.1.2 there):

    q_n . (W_UK,n c_s) = (W_UK,n^T q_n) . c_s         sum_s w_s (W_UV,n c_s) = W_UV,n (sum_s w_s c_s)

Axes: B batch, L new tokens, S cache length, D model width, N heads, R latent, P rotary, C unturned part, U value width.
The sizes and their costs are in `minimoe.attention.mla_config`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from minimoe.attention.cache import Cache, admitted, cache_shape
from minimoe.attention.core import causal_attention
from minimoe.attention.mla_config import MultiHeadLatentConfig
from minimoe.attention.rotary import rotary_angles
from minimoe.attention.yarn import rotary_frequencies
from minimoe.layers import RMSNorm, apply_rope, fan_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentCache:
    """What latent attention keeps of a token: ``R + P`` numbers, nothing else.

    Attributes:
      latent: ``[B, S, R]``, after their norm. rotary: ``[B, S, P]``, the shared keys, turned by their position.
      length: tokens held so far, int32 scalar. Above S, what was appended last does not fit: see `admitted`.
    """

    latent: Float[Array, "B S R"]
    rotary: Float[Array, "B S P"]
    length: Int[Array, ""]

    @classmethod
    def zeros(cls, batch: Any, size: Any, kv_rank: Any, rope_dim: Any, dtype: Any = jnp.float32) -> LatentCache:
        """An empty cache with room for ``size`` tokens in each of ``batch`` sequences."""
        b, s, r, p = cache_shape(batch, size, kv_rank, rope_dim)
        return cls(jnp.zeros((b, s, r), dtype), jnp.zeros((b, s, p), dtype), jnp.zeros((), jnp.int32))

    @property
    def size(self) -> int:
        """S, tokens that it has room for."""
        return self.latent.shape[1]

    def append(self, k: Float[Array, "B L R"], v: Float[Array, "B L P"]) -> LatentCache:
        """A cache that also holds the latents ``k`` and the rotary keys ``v`` of L more tokens; see `admitted`."""
        rank = self.latent.shape[2]
        joined = jnp.concatenate([k, v], axis=-1)[:, :, None]  # one head, as `admitted` knows them
        shape = (*self.latent.shape[:2], 1, rank + self.rotary.shape[2])
        joined, _ = admitted(self.length, shape, joined, joined)
        zero = jnp.zeros((), jnp.int32)
        at = (zero, self.length, zero)
        return LatentCache(
            jax.lax.dynamic_update_slice(self.latent, joined[:, :, 0, :rank].astype(self.latent.dtype), at),
            jax.lax.dynamic_update_slice(self.rotary, joined[:, :, 0, rank:].astype(self.rotary.dtype), at),
            self.length + k.shape[1],
        )

    def read(self) -> tuple[Float[Array, "B S R"], Float[Array, "B S P"]]:
        """All S places; those from ``length`` on hold nothing yet and must be masked."""
        return self.latent, self.rotary

    def shortened(self, length: Int[Array, ""]) -> LatentCache:
        """The cache as it was when it held ``length`` tokens."""
        return dataclasses.replace(self, length=length)


class MultiHeadLatentAttention(nnx.Module):
    """The module; no biases.

    Kernels: ``q_a_proj [D, q_rank]`` and ``q_b_proj [q_rank, N*(C+P)]``, or ``q_proj [D, N*(C+P)]``;
    ``kv_a_proj [D, R+P]``, ``kv_b_proj [R, N*(C+U)]``, ``o_proj [N*U, D]``. A head's unturned part stands before its
    turned one, and its key before its value.

    Args:
      config: the sizes. d_model: D.
      dtype: of the matmuls; ``param_dtype``: of the stored kernels.
      out_scale: multiplies the initial standard deviation of ``o_proj``.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        config: MultiHeadLatentConfig,
        d_model: int,
        *,
        dtype: str = "float32",
        param_dtype: str = "float32",
        out_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.config = config
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype), "rngs": rngs}

        def linear(inner: int, outer: int, scale: float = 1.0) -> nnx.Linear:
            return nnx.Linear(inner, outer, use_bias=False, kernel_init=fan_in(scale), **dtypes)

        n, r, queries = config.num_heads, config.kv_rank, config.num_heads * config.head_dim
        if config.q_rank is None:
            self.q_proj = linear(d_model, queries)
        else:
            self.q_a_proj = linear(d_model, config.q_rank)
            self.q_norm = RMSNorm(config.q_rank, epsilon=config.norm_eps, **dtypes)
            self.q_b_proj = linear(config.q_rank, queries)
        self.kv_a_proj = linear(d_model, r + config.rope_dim)
        self.kv_norm = RMSNorm(r, epsilon=config.norm_eps, **dtypes)
        self.kv_b_proj = linear(r, n * (config.nope_dim + config.v_dim))
        self.o_proj = linear(n * config.v_dim, d_model, out_scale)

    def __call__(
        self, x: Float[Array, "B L D"], cache: Cache | None = None
    ) -> tuple[Float[Array, "B L D"], Cache | None]:
        """Attends within ``x``, or, with a cache, also to the tokens it holds.

        Returns:
          The output and the cache with the new tokens appended (None if none was given).
        """
        start = jnp.zeros((), jnp.int32) if cache is None else cache.length
        positions = start + jnp.arange(x.shape[1], dtype=jnp.int32)
        angles = self._angles(positions)
        q, turned = self._queries(x, angles)
        latent, rotary = self._entries(x, angles)
        if cache is None:
            out = self._expanded(q, turned, latent, rotary)
        else:
            cache = cache.append(latent, rotary)
            latent, rotary = (part.astype(x.dtype) for part in cache.read())
            out = self._absorbed(q, turned, latent, rotary, positions)
        return self.o_proj(out.reshape(*x.shape[:2], out.shape[2] * out.shape[3])), cache

    def _angles(self, positions: Int[Array, "L"]):
        config, yarn = self.config, self.config.yarn
        frequencies = rotary_frequencies(config.rope_dim, config.rope_theta, yarn)
        return rotary_angles(positions, frequencies, 1.0 if yarn is None else yarn.wave_scale)

    def _queries(self, x, angles):
        """``[B, L, N, C]`` without position and ``[B, L, N, P]`` turned; with YaRN they carry the scale of the scores."""
        config = self.config
        flat = self.q_proj(x) if config.q_rank is None else self.q_b_proj(self.q_norm(self.q_a_proj(x)))
        if config.yarn is not None:
            flat = flat * config.yarn.score_scale
        q = flat.reshape(*x.shape[:2], config.num_heads, config.head_dim)
        return q[..., : config.nope_dim], apply_rope(q[..., config.nope_dim :], *angles)

    def _entries(self, x, angles):
        """What the cache keeps: latents ``[B, L, R]`` and rotary keys ``[B, L, P]``."""
        both = self.kv_a_proj(x)
        rank = self.config.kv_rank
        return self.kv_norm(both[..., :rank]), apply_rope(both[:, :, None, rank:], *angles)[:, :, 0]

    def _expanded(self, q, turned, latent, rotary) -> Float[Array, "B L N U"]:
        """Keys and values of every head are made, and attention is the usual one."""
        config = self.config
        made = self.kv_b_proj(latent).reshape(*latent.shape[:2], config.num_heads, config.nope_dim + config.v_dim)
        shared = jnp.broadcast_to(rotary[:, :, None], turned.shape)
        keys = jnp.concatenate([made[..., : config.nope_dim], shared], axis=-1)
        return causal_attention(jnp.concatenate([q, turned], axis=-1), keys, made[..., config.nope_dim :])

    def _absorbed(self, q, turned, latent, rotary, positions) -> Float[Array, "B L N U"]:
        """Queries go down to the latents, which are keys and values of all heads at once; the result comes up again."""
        config = self.config
        up = self._up(latent.dtype)  # [R, N, C + U]
        down = jnp.einsum("blnc,rnc->blnr", q, up[..., : config.nope_dim])
        scores = jnp.einsum("blnr,bsr->bnls", down, latent, preferred_element_type=jnp.float32)
        scores += jnp.einsum("blnp,bsp->bnls", turned, rotary, preferred_element_type=jnp.float32)
        seen = jnp.arange(latent.shape[1], dtype=jnp.int32)[None, :] <= positions[:, None]
        scores = jnp.where(seen[None, None], scores * config.head_dim**-0.5, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(latent.dtype)
        mixed = jnp.einsum("bnls,bsr->blnr", weights, latent)
        return jnp.einsum("blnr,rnu->blnu", mixed, up[..., config.nope_dim :])

    def _up(self, dtype) -> Float[Array, "R N _"]:
        """The matrix of ``kv_b_proj`` as ``[R, N, C + U]``; a layer of another kind in its place is asked by unit vectors."""
        layer, rank = self.kv_b_proj, self.config.kv_rank
        matrix = layer.kernel[...] if isinstance(layer, nnx.Linear) else layer(jnp.eye(rank, dtype=dtype))
        return matrix.astype(dtype).reshape(rank, self.config.num_heads, -1)
