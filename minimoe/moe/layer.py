"""The Mixture-of-Experts layer: router, routed experts, shared expert."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import MoEConfig
from minimoe.layers import SwiGLU, fan_in
from minimoe.moe.capacity import drop_rate, expert_capacity
from minimoe.moe.dispatch import DISPATCHERS
from minimoe.moe.routing import Router, Routing


class Experts(nnx.Module):
    """E SwiGLU experts, stacked: ``gate_up_proj [E, D, 2F]`` (gate first) and ``down_proj [E, F, D]``.

    Any module with this ``__call__`` can take its place in a `MoELayer`; `minimoe.quant.QuantExperts` is one.
    """

    def __init__(self, config: MoEConfig, *, out_scale: float = 1.0, rngs: nnx.Rngs):
        e, d, f = config.num_experts, config.d_model, config.d_expert
        dtype = jnp.dtype(config.param_dtype)
        self.dtype = config.dtype
        self.gate_up_proj = nnx.Param(fan_in()(rngs.params(), (e, d, 2 * f), dtype))
        self.down_proj = nnx.Param(fan_in(out_scale)(rngs.params(), (e, f, d), dtype))

    def __call__(
        self,
        x: Float[Array, "T D"],
        experts: Int[Array, "T K"],
        weights: Float[Array, "T K"],
        *,
        dispatch: str,
        capacity: int | None = None,
    ) -> Float[Array, "T D"]:
        """``y[t] = sum_k weights[t, k] * FFN[experts[t, k]](x[t])``, ``[T, D]`` in the dtype of the matmuls.

        Args:
          x: tokens. experts: the chosen ids. weights: what their outputs are multiplied by.
          dispatch: a name in `DISPATCHERS`. capacity: slots per expert, for ``dispatch="capacity"``.
        """
        dtype = jnp.dtype(self.dtype)
        gate_up, down = self.gate_up_proj[...].astype(dtype), self.down_proj[...].astype(dtype)
        return DISPATCHERS[dispatch](x.astype(dtype), experts, weights, gate_up, down, capacity=capacity)


class MoELayer(nnx.Module):
    """A sparse feed-forward layer: each token through K of E experts, and through the shared ones.

    ``y[t] = shared(x[t]) + sum_k weights[t, k] * expert[experts[t, k]](x[t])``; weights multiply expert outputs.

    Args:
      config: sizes and choices; see `minimoe.MoEConfig`.
      out_scale: multiplies the initial standard deviation of the experts' output matrices.
      rngs: source of the initial weights.

    Example:
      >>> layer = MoELayer(MoEConfig(d_model=8, d_expert=16, num_experts=4, top_k=2), rngs=nnx.Rngs(0))
      >>> y, routing = layer(jnp.ones((5, 8)))
      >>> y.shape, routing.experts.shape, float(routing.load.sum())
      ((5, 8), (5, 2), 10.0)

    References:
      Dai et al., `DeepSeekMoE <https://arxiv.org/abs/2401.06066>`_, eq. 9-11; DeepSeek-V3 eq. 12-16.
    """

    def __init__(self, config: MoEConfig, *, out_scale: float = 1.0, rngs: nnx.Rngs):
        self.config = config
        self.router = Router(config, rngs=rngs)
        self.experts = Experts(config, out_scale=out_scale, rngs=rngs)
        shared = config.num_shared_experts * config.d_expert
        kwargs: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        kwargs |= {"out_scale": out_scale, "rngs": rngs}
        self.shared = nnx.data(SwiGLU(config.d_model, shared, **kwargs) if shared else None)

    def __call__(
        self,
        x: Float[Array, "T D"],
        *,
        tokens: Int[Array, "T"] | None = None,
        where: Bool[Array, "T"] | None = None,
        segments: Int[Array, "T"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "T D"], Routing]:
        """Routes and computes.

        Args:
          x: tokens ``[T, D]``.
          tokens: token ids, for ``select="hash"``.
          where: True for real tokens. Padding gets combine weights of 0, is not counted in the load and takes no slot.
          segments: sequence of each token, for parts that work by sequence (no present one does).
          rngs: noise for ``select="noisy_topk"``, from the stream ``routing`` or the default one.

        Returns:
          ``(y [T, D], routing)``.
        """
        del segments
        config = self.config
        routing = self.router(x, tokens=tokens, where=where, rngs=rngs)
        capacity = expert_capacity(x.shape[0], config)
        if config.dispatch == "capacity":
            routing = dataclasses.replace(routing, dropped=drop_rate(routing.load, capacity))
        with jax.named_scope("experts"):
            y = self.experts(x, routing.experts, routing.weights, dispatch=config.dispatch, capacity=capacity)
        if self.shared is not None:
            with jax.named_scope("shared_expert"):
                y = y + self.shared(x.astype(jnp.dtype(config.dtype)))
        return y.astype(x.dtype), routing


def with_dispatch(layer: MoELayer, dispatch: str) -> MoELayer:
    """A copy of the layer with the same weights and another dispatch: for comparing answers and clocks."""
    config = dataclasses.replace(layer.config, dispatch=dispatch)
    graphdef, state = nnx.split(layer)
    twin = nnx.merge(graphdef, state)
    twin.config = config
    return twin
