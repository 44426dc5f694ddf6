"""What the three kinds of DeepSeek-V4 have in common: N query heads, and one row a token that is key and value of all.

    token h --- q_a, norm --> latent --- q_b --> N heads, each normed, last R dims turned by +t
            --- kv, norm  --> one row e_t of H numbers, last R dims turned by +t           (kept: the last W rows)

    heads o_1 .. o_N, turned back by -t --- g groups of N/g heads, each by its own matrix to r numbers --- o_b --> D

    q_n = RoPE(unit(W_UQ,n norm(W_DQ h)))    e = RoPE(norm(W_KV h))    y = W_B [W_A,1 o_(1) ; ... ; W_A,g o_(g)]

``unit`` is RMSNorm without weights. `minimoe.attention.window` has the softmax,
`minimoe.attention.shared_kv_config` the sizes.

Axes: B batch, L new tokens, D model width, N heads, H head width, R rotary dims, Q query rank, W window, g groups, E entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.attention.cache import Cache, admitted
from minimoe.attention.compress import Compressed
from minimoe.attention.indexer import IndexLoss
from minimoe.attention.ring import ring_read, ring_slots
from minimoe.attention.rotary import rotary_angles, turn_last
from minimoe.attention.storage import Rows
from minimoe.attention.window import attend
from minimoe.errors import UserError
from minimoe.layers import RMSNorm, fan_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedKVCache:
    """The decoding state of one layer: a ring of the last rows, and what compression keeps.

    Attributes:
      window: ring of ``min(W, S)`` rows, turned by their positions.
      compressed: one `Compressed` for HCA, two for CSA (entries, keys of the indexer), none for a window alone.
      length: tokens held so far, int32 scalar. Above S, what was appended last does not fit: see `admitted`.
      size: S, tokens that it has room for.
    """

    window: Rows
    compressed: tuple[Compressed, ...]
    length: Int[Array, ""]
    size: int = dataclasses.field(metadata={"static": True})

    def append(self, k: Float[Array, "B L 1 H"], v: Float[Array, "B L 1 H"]) -> SharedKVCache:
        """A cache that holds the rows of L more tokens; ``k`` and ``v`` are the same rows."""
        batch, slots, width = self.window.shape
        k, _ = admitted(self.length, (batch, self.size, 1, width), k, v)
        at, dropped = ring_slots(slots, self.length, k.shape[1])
        window = self.window.write(at, k[:, dropped:, 0])
        return dataclasses.replace(self, window=window, length=self.length + k.shape[1])

    def read(self) -> tuple[Float[Array, "B _ 1 H"], Float[Array, "B _ 1 H"]]:
        """The rows of the window, oldest first, as keys and as values; those below position 0 hold nothing yet."""
        rows = ring_read(self.window.read(), self.length)[:, :, None]
        return rows, rows


class SharedKVAttention(nnx.Module):
    """The module of a window alone; the compressed kinds add their entries in `_entries`.

    Kernels: ``q_a_proj [D, Q]``, ``q_b_proj [Q, N*H]``, ``kv_proj [D, H]``, ``o_a_proj [g, N*H/g, r]``,
    ``o_b_proj [g*r, D]``; ``sink [N]`` float32, None if the config has ``sink=False``.

    Args:
      config: the sizes. d_model: D.
      dtype: of the matmuls; ``param_dtype``: of the stored kernels.
      out_scale: multiplies the initial standard deviation of ``o_b_proj``.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        config: Any,
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

        heads, groups = config.num_heads * config.head_dim, config.out_groups
        self.q_a_proj = linear(d_model, config.q_rank)
        self.q_norm = RMSNorm(config.q_rank, epsilon=config.norm_eps, **dtypes)
        self.q_b_proj = linear(config.q_rank, heads)
        self.kv_proj = linear(d_model, config.head_dim)
        self.kv_norm = RMSNorm(config.head_dim, epsilon=config.norm_eps, **dtypes)
        self.sink = nnx.data(nnx.Param(jnp.zeros(config.num_heads, jnp.float32)) if config.sink else None)
        shape = (groups, heads // groups, config.out_rank)
        self.o_a_proj = nnx.Einsum("blgi,gir->blgr", shape, kernel_init=fan_in(), **dtypes)
        self.o_b_proj = linear(groups * config.out_rank, d_model, out_scale)

    def __call__(
        self, x: Float[Array, "B L D"], cache: Cache | None = None
    ) -> tuple[Float[Array, "B L D"], Cache | IndexLoss | None]:
        """Attends within ``x``, or, with a cache, also to what it holds; L may be any length.

        Returns:
          The output and the cache with the new tokens appended. If none was given: None, or what the indexer lost.

        Raises:
          UserError: for a symbolic length (`jax.export.symbolic_shape`).
        """
        config = self.config
        if jax.export.is_symbolic_dim(x.shape[1]):
            raise UserError(
                f"{config.kind}: the length is {x.shape[1]}, but its windows need a number; export one length"
            )
        left: Cache | IndexLoss | None = None
        held: tuple[Compressed, ...] = ()
        start = jnp.zeros((), jnp.int32) if cache is None else cache.length
        positions = start + jnp.arange(x.shape[1], dtype=jnp.int32)
        angles = rotary_angles(positions, np.asarray(config.frequencies, np.float32))
        q, latent = self._queries(x, angles)
        row = turn_last(self.kv_norm(self.kv_proj(x))[:, :, None], *angles)
        if cache is None:
            before = jnp.zeros((x.shape[0], min(config.window, x.shape[1]), config.head_dim), row.dtype)
            now = row[:, :, 0]
        else:
            assert isinstance(cache, SharedKVCache)
            before = cache.read()[0][:, :, 0]
            now, _ = admitted(start, (cache.window.shape[0], cache.size, 1, config.head_dim), row, row)
            now = cache.window.kept(now[:, :, 0])  # what the cache will say of these tokens
            held = self._extend(x, cache.compressed, start)
            left = dataclasses.replace(cache.append(row, row), compressed=held)
        entries, visible, scores = self._entries(x, latent, angles, positions, held)
        rows = jnp.concatenate([before, now], axis=1).astype(q.dtype)
        sink = None if self.sink is None else self.sink[...]
        out, weights = attend(q, rows, start, config.window, sink, entries.astype(q.dtype), visible)
        if scores is not None:
            out, left = self._taught(out, weights, visible, scores)
        return self._output(turn_last(out, angles[0], -angles[1])), left

    def _queries(self, x, angles) -> tuple[Float[Array, "B L N H"], Float[Array, "B L Q"]]:
        """The turned queries, and the latent that they come from."""
        latent = self.q_norm(self.q_a_proj(x))
        q = self.q_b_proj(latent).reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
        return turn_last(unit(q, self.config.norm_eps), *angles), latent

    def _output(self, out: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
        """Each group of heads by its own matrix, then all together."""
        config = self.config
        heads = (config.out_groups, config.num_heads * config.head_dim // config.out_groups)
        grouped = self.o_a_proj(out.reshape(*out.shape[:2], *heads))
        return self.o_b_proj(grouped.reshape(*out.shape[:2], config.out_groups * config.out_rank))

    def _extend(self, x, held: tuple[Compressed, ...], start) -> tuple[Compressed, ...]:
        """The compressed state after the tokens ``x``."""
        return held

    def _entries(
        self, x, latent, angles, positions, held
    ) -> tuple[Float[Array, "B *L E H"], Bool[Array, "B L E"], Float[Array, "B L E"] | None]:
        """Compressed entries, made from ``x`` if nothing is ``held``; which of them each query sees; scores to be taught.

        They are the same for all queries, or each has its own.
        """
        batch, length = x.shape[:2]
        return jnp.zeros((batch, 0, self.config.head_dim), x.dtype), jnp.zeros((batch, length, 0), bool), None

    def _taught(self, out, weights, visible, scores) -> tuple[Float[Array, "B L N H"], IndexLoss | None]:
        """``out``, whose gradient also teaches what made the ``scores``, and what they lost."""
        return out, None


def unit(x: Float[Array, "B L N H"], eps: float) -> Float[Array, "B L N H"]:
    """RMSNorm over H without weights, in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)).astype(x.dtype)
