"""The model once more, in operators of ONNX: one graph that reads any batch, any length and any cache.

    tokens [B, L] ----------------------------.
    past.0.key, past.0.value [B, M, P, H] ...  |  P = 0 for a text from its beginning
                                               v
    embedding -> layers -> norm -> head -> logits [B, L, V]
                              '-> present.0.key, present.0.value [B, M, P + L, H] ...

A converter would translate what JAX traces, with the shapes of one example and the loops of the fast dispatch. Written
by hand, the graph has the mathematics alone: expert by expert, the rows that chose it are gathered, multiplied, and
added where they came from. So each token costs K experts here too.

Axes: B batch, L new tokens, P tokens in the cache, T = B*L, D model width, N heads, M key/value heads, H head width,
E experts, K experts per token, F expert width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minimoe.attention.gqa import GroupedQueryAttention
from minimoe.attention.gqa_config import GroupedQueryConfig
from minimoe.config import MoEConfig
from minimoe.errors import UserError
from minimoe.export.graph import Graph
from minimoe.layers import SwiGLU
from minimoe.layers.residual import AddConfig
from minimoe.model import Block, MoETransformer
from minimoe.moe import MoELayer

SELECTS = ("topk", "noisy_topk", "group_limited", "hash")


def why_not(model: MoETransformer) -> str:
    """What keeps a model from being written as ONNX, in one sentence; "" if nothing does."""
    config = model.config
    for i, layer in enumerate(config.layers):
        if not isinstance(layer.attention, GroupedQueryConfig):
            kind = "none" if layer.attention is None else layer.attention.kind
            return f"layer {i} has attention of kind {kind!r}, and only 'grouped_query' is written"
        if layer.moe is not None and layer.moe.select not in SELECTS:
            return f"layer {i} selects by {layer.moe.select!r}, which looks at the whole batch; {', '.join(SELECTS)} do not"
    if not isinstance(config.residual, AddConfig):
        return f"its residual is {type(config.residual).__name__}, and only the plain one is written"
    return ""


class Writer:
    """Adds the parts of one model to a graph.

    Args:
      graph: to add to. int8: store matrices as int8 with one float32 scale a column.
    """

    def __init__(self, graph: Graph, *, int8: bool = False):
        self.g = graph
        self.int8 = int8

    def model(self, model: MoETransformer) -> tuple[str, list[tuple[str, str]]]:
        """The whole graph. Its inputs are named in the module's docstring.

        Returns:
          The name of the logits, and of the longer keys and values of each layer.

        Raises:
          UserError: naming what cannot be written.
        """
        reason = why_not(model)
        if reason:
            raise UserError(f"format 'onnx': {reason}; export a model that has neither, or use format 'stablehlo'")
        g = self.g
        table = g.constant(_array(model.embed.embedding), "embed.embedding")
        x = g.Gather(table, "tokens", axis=0)  # [B, L, D]
        flat_tokens = g.Reshape("tokens", g.ints(-1))
        present = []
        for i, block in enumerate(model.layers):
            x, cache = self.block(block, x, flat_tokens, f"layers.{i}", (f"past.{i}.key", f"past.{i}.value"))
            present.append(cache)
        x = self.norm(model.norm, x, "norm")
        tied = model.head is None
        head = g.Transpose(table, perm=[1, 0]) if tied else self.matrix(model.head.kernel, "head.kernel")  # type: ignore[union-attr]
        return g.MatMul(x, head), present

    def block(self, block: Block, x: str, tokens: str, name: str, past: tuple[str, str]) -> tuple[str, tuple[str, str]]:
        """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""
        g = self.g
        seen = self.norm(block.attention_norm, x, f"{name}.attention_norm")
        assert isinstance(block.attention, GroupedQueryAttention)  # `why_not` has looked
        attended, present = self.attention(block.attention, seen, f"{name}.attention", past)
        x = g.Add(x, attended)
        seen = self.norm(block.ffn_norm, x, f"{name}.ffn_norm")
        if isinstance(block.ffn, MoELayer):
            flat = g.Reshape(seen, g.ints(-1, block.ffn.config.d_model))  # [T, D]
            y = g.Reshape(self.moe(block.ffn, flat, tokens, f"{name}.ffn"), g.Shape(x))
        else:
            y = self.swiglu(block.ffn, seen, f"{name}.ffn")
        return g.Add(x, y), present

    def norm(self, norm: Any, x: str, name: str) -> str:
        """RMSNorm over the last axis."""
        g = self.g
        mean = g.ReduceMean(g.Mul(x, x), g.ints(-1), keepdims=1)
        scaled = g.Div(x, g.Sqrt(g.Add(mean, g.float(norm.epsilon))))
        return g.Mul(scaled, g.constant(_array(norm.scale), f"{name}.scale"))

    def attention(
        self, attention: GroupedQueryAttention, x: str, name: str, past: tuple[str, str]
    ) -> tuple[str, tuple[str, str]]:
        """Grouped-query attention to the cache and to the new tokens: equations (1) and (2) of `minimoe.attention.gqa`."""
        g, c = self.g, attention.config
        start = g.size(past[0], 2)  # P
        q = self.heads(attention.q_proj, x, c.num_heads, c.head_dim, f"{name}.q_proj")  # [B, N, L, H]
        k = self.heads(attention.k_proj, x, c.num_kv_heads, c.head_dim, f"{name}.k_proj")
        v = self.heads(attention.v_proj, x, c.num_kv_heads, c.head_dim, f"{name}.v_proj")
        if c.qk_norm:
            q = self.norm(attention.q_norm, q, f"{name}.q_norm")
            k = self.norm(attention.k_norm, k, f"{name}.k_norm")
        end = g.Add(start, g.size(x, 1))
        positions = g.Range(g.Squeeze(start), g.Squeeze(end), g.int(1))  # [L]
        q, k = self.rotate(q, positions, c), self.rotate(k, positions, c)
        k, v = g.Concat(past[0], k, axis=2), g.Concat(past[1], v, axis=2)  # [B, M, P + L, H]
        group = c.num_heads // c.num_kv_heads
        rows = g.Reshape(q, g.Concat(g.ints(0, c.num_kv_heads, group), g.size(x, 1), g.ints(c.head_dim), axis=0))
        keys = g.Transpose(g.Unsqueeze(k, g.ints(2)), perm=[0, 1, 2, 4, 3])  # [B, M, 1, H, P + L]
        scores = g.Mul(g.MatMul(rows, keys), g.float(c.head_dim**-0.5))  # [B, M, N/M, L, P + L]
        places = g.Range(g.int(0), g.Squeeze(end), g.int(1))  # [P + L]
        hidden = g.Greater(g.Unsqueeze(places, g.ints(0)), g.Unsqueeze(positions, g.ints(1)))  # [L, P + L]
        weights = g.Softmax(g.Where(hidden, g.float(-np.inf), scores), axis=-1)
        out = g.MatMul(weights, g.Unsqueeze(v, g.ints(2)))  # [B, M, N/M, L, H]
        out = g.Transpose(out, perm=[0, 3, 1, 2, 4])
        flat = g.Reshape(out, g.ints(0, 0, c.num_heads * c.head_dim))
        return g.MatMul(flat, self.matrix(attention.o_proj.kernel, f"{name}.o_proj.kernel")), (k, v)

    def heads(self, linear: Any, x: str, num: int, width: int, name: str) -> str:
        """A projection, cut into heads ``[B, num, L, width]``."""
        g = self.g
        y = g.MatMul(x, self.matrix(linear.kernel, f"{name}.kernel"))
        if linear.bias is not None:
            y = g.Add(y, g.constant(_array(linear.bias), f"{name}.bias"))
        return g.Transpose(g.Reshape(y, g.ints(0, 0, num, width)), perm=[0, 2, 1, 3])

    def rotate(self, x: str, positions: str, config: GroupedQueryConfig) -> str:
        """Turns dim i with dim i + P/2 of the first P dims of a head, by position times frequency."""
        g, turned = self.g, config.turned
        half = turned // 2
        # The exponents in float32, as `minimoe.layers.rope_angles` has them: an angle errs by the position otherwise.
        frequencies = np.asarray(config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half))
        angles = g.Mul(
            g.Unsqueeze(g.Cast(positions, to=1), g.ints(1)), g.constant(frequencies, f"frequencies_{len(g.nodes)}")
        )
        cos, sin = g.Cos(angles), g.Sin(angles)  # [L, P/2]
        first = g.Slice(x, g.ints(0), g.ints(half), g.ints(-1))
        second = g.Slice(x, g.ints(half), g.ints(turned), g.ints(-1))
        parts = [
            g.Sub(g.Mul(first, cos), g.Mul(second, sin)),
            g.Add(g.Mul(second, cos), g.Mul(first, sin)),
        ]
        if turned < config.head_dim:
            parts.append(g.Slice(x, g.ints(turned), g.ints(config.head_dim), g.ints(-1)))
        return g.Concat(*parts, axis=-1)

    def swiglu(self, ffn: SwiGLU, x: str, name: str) -> str:
        """``down(silu(gate(x)) * up(x))``."""
        gate_up, down = _array(ffn.gate_up_proj.kernel), _array(ffn.down_proj.kernel)
        return self._swiglu(x, gate_up, down, ffn.limit, name)

    def _swiglu(self, x: str, gate_up: np.ndarray, down: np.ndarray, limit: float | None, name: str) -> str:
        g = self.g
        gate, up = g.Split(g.MatMul(x, self.matrix(gate_up, f"{name}.gate_up")), outputs=2, axis=-1, num_outputs=2)
        if limit is not None:
            gate = g.Min(gate, g.float(limit))
            up = g.Max(g.Min(up, g.float(limit)), g.float(-limit))
        hidden = g.Mul(g.Mul(gate, g.Sigmoid(gate)), up)
        return g.MatMul(hidden, self.matrix(down, f"{name}.down"))

    def moe(self, layer: MoELayer, x: str, tokens: str, name: str) -> str:
        """Router, then each expert on the rows that chose it, then the shared expert."""
        g, c = self.g, layer.config
        experts, weights = self.route(layer, x, tokens, f"{name}.router")  # [T, K] each
        y = g.Mul(x, g.float(0.0))
        gate_up, down = _array(layer.experts.gate_up_proj), _array(layer.experts.down_proj)
        for e in range(c.num_experts):
            chosen = g.NonZero(g.Equal(experts, g.int(e)))  # [2, n]: token and place of every pair
            token = g.Gather(chosen, g.int(0), axis=0)
            out = self._swiglu(g.Gather(x, token, axis=0), gate_up[e], down[e], c.swiglu_limit, f"{name}.experts.{e}")
            weight = g.GatherND(weights, g.Transpose(chosen, perm=[1, 0]))  # [n]
            weighted = g.Mul(out, g.Unsqueeze(weight, g.ints(1)))
            y = g.ScatterND(y, g.Unsqueeze(token, g.ints(1)), weighted, reduction="add")
        if layer.shared is not None:
            y = g.Add(y, self.swiglu(layer.shared, x, f"{name}.shared"))
        return y

    def route(self, layer: MoELayer, x: str, tokens: str, name: str) -> tuple[str, str]:
        """The chosen experts and their combine weights, ``[T, K]`` each."""
        g, c = self.g, layer.config
        logits = g.MatMul(x, g.constant(_array(layer.router.kernel), f"{name}.kernel"))  # never rounded
        if c.score == "softmax":
            affinity = g.Softmax(logits, axis=-1)
        elif c.score == "sigmoid":
            affinity = g.Sigmoid(logits)
        else:
            affinity = g.Sqrt(g.Softplus(logits))
        if c.select == "hash":
            experts = g.Gather(g.constant(_array(layer.router.table), f"{name}.table", np.int64), tokens, axis=0)
        else:
            scores = g.Add(affinity, g.constant(_array(layer.router.bias), f"{name}.bias"))
            if c.select == "group_limited":
                scores = self.best_groups(scores, c)
            _, experts = g.TopK(scores, g.ints(c.top_k), outputs=2, axis=-1)
        weights = g.GatherElements(affinity, experts, axis=-1)
        if c.normalize_weights:
            logs = {"softmax": lambda: logits, "sigmoid": lambda: g.Neg(g.Softplus(g.Neg(logits)))}
            log = logs.get(c.score, lambda: g.Log(affinity))()
            weights = g.Softmax(g.GatherElements(log, experts, axis=-1), axis=-1)
        return experts, g.Mul(weights, g.float(c.routed_scaling_factor))

    def best_groups(self, scores: str, config: MoEConfig) -> str:
        """-inf for experts outside the groups whose two best scores have the largest sum."""
        g = self.g
        per = config.num_experts // config.num_groups
        grouped = g.Reshape(scores, g.ints(0, config.num_groups, per))
        best, _ = g.TopK(grouped, g.ints(min(2, per)), outputs=2, axis=-1)
        totals = g.ReduceSum(best, g.ints(-1), keepdims=0)  # [T, G]
        _, kept = g.TopK(totals, g.ints(config.top_k_groups), outputs=2, axis=-1)
        ids = g.constant(np.arange(config.num_groups), f"groups_{len(g.nodes)}", np.int64)
        same = g.Equal(g.Unsqueeze(kept, g.ints(2)), ids)  # [T, kept, G]
        is_kept = g.Cast(g.ReduceMax(g.Cast(same, to=6), g.ints(1), keepdims=0), to=9)  # [T, G]
        masked = g.Where(g.Unsqueeze(is_kept, g.ints(2)), grouped, g.float(-np.inf))
        return g.Reshape(masked, g.ints(0, config.num_experts))

    def matrix(self, value: Any, name: str) -> str:
        """A weight ``[in, out]``: as it is, or as int8 codes times the scale of each column."""
        array = value if isinstance(value, np.ndarray) else _array(value)
        if not self.int8:
            return self.g.constant(array, name)
        codes, scale = int8_columns(array)
        return self.g.DequantizeLinear(
            self.g.constant(codes, f"{name}.codes"), self.g.constant(scale, f"{name}.scale"), axis=1
        )


def int8_columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in -127..127 and the scale of each column, ``amax / 127``; a column of zeros has scale 1.

    Example:
      >>> codes, scale = int8_columns(np.array([[127.0, 0.0], [-63.5, 0.0]], np.float32))
      >>> codes.tolist(), scale.tolist()
      ([[127, 0], [-64, 0]], [1.0, 1.0])
    """
    scale = np.abs(matrix).max(axis=0) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    return np.rint(matrix / scale).astype(np.int8), scale


def _array(value: Any) -> np.ndarray:
    """A variable as float32 (a table of ids as it is)."""
    array = jax.device_get(value[...])
    return array if np.issubdtype(array.dtype, np.integer) else np.asarray(array, np.float32)
