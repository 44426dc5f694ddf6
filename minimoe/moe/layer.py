"""The Mixture-of-Experts layer: router, routed experts, shared expert."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import MoEConfig
from minimoe.errors import UserError
from minimoe.layers import SwiGLU, as_mask, fan_in
from minimoe.layers.sizes import Size
from minimoe.moe.capacity import drop_rate, expert_capacity
from minimoe.moe.dispatch import DISPATCHERS
from minimoe.moe.routing import Router, Routing

# By path of the parameter it fills, as "experts.down_proj".
Initializers = Mapping[str, nnx.initializers.Initializer]


class Experts(nnx.Module):
    """E SwiGLU experts, stacked: ``gate_up_proj [E, D, 2F]`` (gate first) and ``down_proj [E, F, D]``.

    Any module with this ``__call__`` can take its place in a `MoELayer`; `minimoe.quant.QuantExperts` is one.

    Args:
      config: sizes and dtypes.
      out_scale: multiplies the initial standard deviation of ``down_proj``.
      gate_up_init, down_init: initialisers in place of `minimoe.layers.fan_in`; what metadata they attach is kept.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        out_scale: float = 1.0,
        gate_up_init: nnx.initializers.Initializer | None = None,
        down_init: nnx.initializers.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        e, d, f = config.num_experts, config.d_model, config.d_expert
        dtype = jnp.dtype(config.param_dtype)
        self.dtype = config.dtype
        self.limit = config.swiglu_limit
        self.gate_up_proj = nnx.Param((gate_up_init or fan_in())(rngs.params(), (e, d, 2 * f), dtype))
        self.down_proj = nnx.Param((down_init or fan_in(out_scale))(rngs.params(), (e, f, d), dtype))

    def __call__(
        self,
        x: Float[Array, "T D"],
        experts: Int[Array, "T K"],
        weights: Float[Array, "T K"],
        *,
        dispatch: str,
        capacity: int | None = None,
        used: Bool[Array, "T K"] | None = None,
    ) -> Float[Array, "T D"]:
        """``y[t] = sum_k weights[t, k] * FFN[experts[t, k]](x[t])``, ``[T, D]`` in the dtype of the matmuls.

        Args:
          x: tokens. experts: the chosen ids. weights: what their outputs are multiplied by.
          dispatch: a name in `DISPATCHERS`.
          capacity, used: slots per expert, and the pairs that ask for one; ``dispatch="capacity"`` reads them.

        Raises:
          UserError: for forward-mode differentiation of ``dropless``, whose gradient is written for reverse mode.
        """
        dtype = jnp.dtype(self.dtype)
        gate_up, down = self.gate_up_proj[...].astype(dtype), self.down_proj[...].astype(dtype)
        kwargs: dict[str, Any] = {"capacity": capacity, "used": used, "limit": self.limit}
        return DISPATCHERS[dispatch](jnp.asarray(x, dtype), experts, weights, gate_up, down, **kwargs)


class MoELayer(nnx.Module):
    """A sparse feed-forward layer: each token through K of E experts, and through the shared ones.

    ``y[t] = shared(x[t]) + sum_k weights[t, k] * expert[experts[t, k]](x[t])``; weights multiply expert outputs.

    Args:
      config: sizes and choices; see `minimoe.MoEConfig`.
      out_scale: multiplies the initial standard deviation of the experts' output matrices.
      initializers: initialisers of your own, by path: ``router.kernel``, ``experts.gate_up_proj``,
        ``experts.down_proj``, ``shared.gate_up_proj``, ``shared.down_proj``. Metadata that they attach is kept, as that
        of ``nnx.with_partitioning``.
      rngs: source of the initial weights.

    Raises:
      UserError: for an unknown path in ``initializers``.

    Example:
      >>> layer = MoELayer(MoEConfig(d_model=8, d_expert=16, num_experts=4, top_k=2), rngs=nnx.Rngs(0))
      >>> y, routing = layer(jnp.ones((5, 8)))
      >>> y.shape, routing.experts.shape, float(routing.load.sum())
      ((5, 8), (5, 2), 10.0)
      >>> y, routing = layer(jnp.ones((2, 3, 8)))  # any leading axes; the routing is by token
      >>> y.shape, routing.experts.shape
      ((2, 3, 8), (6, 2))

    References:
      Dai et al., `DeepSeekMoE <https://arxiv.org/abs/2401.06066>`_, eq. 9-11; DeepSeek-V3 eq. 12-16.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        out_scale: float = 1.0,
        initializers: Initializers | None = None,
        rngs: nnx.Rngs,
    ):
        given = dict(initializers or {})
        self.config = config
        self.router = Router(config, kernel_init=given.pop("router.kernel", None), rngs=rngs)
        gate_up, down = given.pop("experts.gate_up_proj", None), given.pop("experts.down_proj", None)
        self.experts = Experts(config, out_scale=out_scale, gate_up_init=gate_up, down_init=down, rngs=rngs)
        shared = config.num_shared_experts * config.d_expert
        kwargs: dict[str, Any] = {"dtype": config.dtype, "param_dtype": config.param_dtype}
        kwargs |= {"out_scale": out_scale, "limit": config.swiglu_limit, "rngs": rngs}
        kwargs |= {f"{name}_init": given.pop(f"shared.{name}_proj", None) for name in ("gate_up", "down")}
        self.shared = nnx.data(SwiGLU(config.d_model, shared, **kwargs) if shared else None)
        if given:
            known = "router.kernel, experts.gate_up_proj, experts.down_proj, shared.gate_up_proj, shared.down_proj"
            raise UserError(f"MoELayer: initializers for {sorted(given)} are not used; the paths are {known}")

    def __call__(
        self,
        x: Float[Array | np.ndarray, "*B D"],
        *,
        tokens: Int[Array, "..."] | None = None,
        where: Bool[Array, "..."] | None = None,
        segments: Int[Array, "..."] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "*B D"], Routing]:
        """Routes and computes.

        Args:
          x: tokens ``[..., D]``, of any float dtype. T is the product of the leading axes.
          tokens: token ids, for ``select="hash"``; of the leading shape of ``x``, or ``[T]``.
          where: True for real tokens; the leading shape or ``[T]``. Padding gets combine weights of 0, is not counted in
            the load and takes no slot.
          segments: sequence of each token, for parts that work by sequence (no present one does); the leading shape or
            ``[T]``.
          rngs: noise for ``select="noisy_topk"``, from the stream ``routing`` or the default one.

        Returns:
          ``(y [..., D], routing)``; the record is by token, ``[T, ...]``.

        Leading axes may be symbolic dimensions of `jax.export`, except where tokens compete for slots.

        Raises:
          UserError: for a wrong width, a wrong dtype, or a wrong number of tokens, naming both.
        """
        config = self.config
        lead = _check_input(x, config.d_model)
        x = jnp.asarray(x)
        flat = x.reshape(-1, config.d_model)
        tokens, where, _ = (
            _by_token(name, value, lead)
            for name, value in (("tokens", tokens), ("where", where), ("segments", segments))
        )
        routing = self.router(flat, tokens=tokens, where=where, rngs=rngs)
        capacity = None
        if config.dispatch == "capacity":
            capacity = expert_capacity(flat.shape[0], config)
            routing = dataclasses.replace(routing, dropped=drop_rate(routing.load, capacity))
        with jax.named_scope("experts"):
            kwargs: dict[str, Any] = {"dispatch": config.dispatch, "capacity": capacity, "used": routing.used}
            y = self.experts(flat, routing.experts, routing.weights, **kwargs)
        if self.shared is not None:
            with jax.named_scope("shared_expert"):
                y = y + self.shared(flat.astype(jnp.dtype(config.dtype)))
        return y.astype(x.dtype).reshape(x.shape), routing


def _check_input(x: Any, width: int) -> tuple[Size, ...]:
    """The leading axes of ``x``, which must be one float array of this width."""
    if not hasattr(x, "dtype"):
        raise UserError(
            f"MoELayer: x is a {type(x).__name__}, but must be one array [..., {width}]; pad sequences of unequal length "
            "to one length, stack them, and pass where=True for real tokens"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"MoELayer: x has dtype {x.dtype} but must be float; embed ids first, and give them as tokens=")
    if x.ndim == 0 or x.shape[-1] != width:
        raise UserError(
            f"MoELayer: the last axis of x must be d_model={width}, but x has shape {list(x.shape)}; "
            "move the features to the last axis, or change the config"
        )
    return tuple(x.shape[:-1])


def _by_token(name: str, value: Any, lead: tuple[Size, ...]) -> Array | None:
    """``value`` as ``[T]``, from the leading shape of x or from ``[T]``."""
    if value is None:
        return None
    value = value if hasattr(value, "dtype") else np.asarray(value)
    count = math.prod(lead)
    if tuple(value.shape) not in (lead, (count,)):
        raise UserError(
            f"MoELayer: {name} has shape {list(value.shape)}, but x has {list(lead)} tokens; give one entry a token, of "
            f"shape {list(lead)}{'' if len(lead) == 1 else f' or [{count}]'}"
        )
    if name == "where":
        return as_mask(value, value.shape, "MoELayer").reshape(count)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise UserError(f"MoELayer: {name} has dtype {value.dtype} but must be whole numbers; give ids as int32")
    return jnp.asarray(value).reshape(count)


def with_dispatch(layer: MoELayer, dispatch: str) -> MoELayer:
    """A copy of the layer with the same weights and another dispatch, to compare answers and times."""
    config = dataclasses.replace(layer.config, dispatch=dispatch)
    graphdef, state = nnx.split(layer)
    twin = nnx.merge(graphdef, state)
    twin.config = config
    return twin
