"""DeepSeek-V4 as loops over tokens in float64, from its equations; nothing here is shared with the package.

Weights are a flat ``name -> array`` with the names of the published checkpoints (``layers.0.attn.wq_a.weight``), matrices
``[out, in]``; settings are a config.json as Transformers 5.23 writes it. Everything is one sequence, ``[L, D]``.

Axis letters: L sequence, D width, N heads, H head width, R rotary dims (the last of a head), E entries, m tokens an entry.

What the report, DeepSeek's code and Transformers say differently, and what is done here:

- The report lets query t read entry i if ``i < floor(t / m)`` and counts t from 1. Counted from 0 that is
  ``i < (t + 1) // m``, as both programs have it.
- The report calls a token's part in its own entry "a". In the files the first half of ``wkv`` and ``wgate`` is the part
  in the *next* entry. The files decide.
- DeepSeek's indexer turns queries and keys by a Hadamard matrix and rounds them to FP4. The matrix is orthogonal and
  cancels in the product; rounding is not part of the mathematics. Neither is here, nor in Transformers.
- DeepSeek's code scales the indexer's head weights by ``1/sqrt(dim * heads)``, Transformers scales products and weights
  apart. The two are equal.
- Transformers adds 1e-20 to the sum of the routing weights, DeepSeek's code nothing. In float64 these are equal.
- DeepSeek's code multiplies by a routing weight before the last matrix of an expert, Transformers after. Equal but for
  rounding.
- Transformers' documentation says that the first dims of a head turn, and that the clamp is for routed experts. Its code
  turns the last dims and clamps the shared expert too, as DeepSeek's does. The code decides.
- YaRN may scale cosine and sine. V4 does not: config.json says ``attention_factor`` 1.0 for it.
- Layers with a window alone turn by ``rope_theta`` without YaRN; the others turn everything, their window too, by
  ``compress_rope_theta`` with YaRN. Report and programs agree, it is easily overlooked.
- Equal scores at the edge of the top k: the lower entry is taken here. PyTorch promises no order. ReLU makes scores of
  exactly 0, so models that are compared need several indexer heads.
"""

from __future__ import annotations

import math

import numpy as np
import oracles


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T


def unit(x, eps):
    """Divided by the root mean square of the last axis: the norm of every query head has no weights."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def norm(x, weights, name, eps):
    return unit(x, eps) * weights[f"{name}.weight"]


def frequencies(rope, dims):
    """Radians a token of each pair; under YaRN a pair that turns rarely within the trained length turns slower."""
    plain = [rope["rope_theta"] ** (-2 * i / dims) for i in range(dims // 2)]
    if rope["rope_type"] == "default":
        return plain
    assert rope["rope_type"] == "yarn"
    assert rope["attention_factor"] == 1.0

    def pair_with(turns):
        length = rope["original_max_position_embeddings"]
        return dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low = max(math.floor(pair_with(rope["beta_fast"])), 0)
    high = min(math.ceil(pair_with(rope["beta_slow"])), dims - 1)
    span = high - low if high != low else 0.001
    slowed = [min(max((i - low) / span, 0), 1) for i in range(dims // 2)]
    return [f * (1 - s) + f / rope["factor"] * s for f, s in zip(plain, slowed, strict=True)]


def turn(x, position, freqs):
    """``[..., H]``: neighbours of the last dims as complex numbers, turned by ``position`` times their frequency."""
    out, start = np.array(x), x.shape[-1] - 2 * len(freqs)
    for i, frequency in enumerate(freqs):
        pair = (x[..., start + 2 * i] + 1j * x[..., start + 2 * i + 1]) * np.exp(1j * position * frequency)
        out[..., start + 2 * i], out[..., start + 2 * i + 1] = pair.real, pair.imag
    return out


def turn_back(x, position, freqs):
    """An output holds values that were turned as keys."""
    return turn(x, -position, freqs)


def entries(x, weights, name, ratio, overlap, freqs, eps):
    """``[E, H]``: each full window of m tokens as one entry, each channel with a softmax over the tokens of its own."""
    values, gates = linear(x, weights, f"{name}.wkv"), linear(x, weights, f"{name}.wgate")
    bias = weights[f"{name}.ape"]
    gates = np.stack([gate + bias[t % ratio] for t, gate in enumerate(gates)])
    width = values.shape[1] // (2 if overlap else 1)
    to_next, own = slice(0, width), slice(-width, None)
    found = []
    for i in range(len(x) // ratio):
        parts = [(t, own) for t in range(i * ratio, (i + 1) * ratio)]
        if overlap and i > 0:
            parts += [(t, to_next) for t in range((i - 1) * ratio, i * ratio)]
        z = np.exp(np.stack([gates[t, part] for t, part in parts]))
        c = np.stack([values[t, part] for t, part in parts])
        pooled = (z * c).sum(axis=0) / z.sum(axis=0)
        found.append(turn(norm(pooled, weights, f"{name}.norm", eps), i * ratio, freqs))
    return np.array(found).reshape(len(found), width)


def window(t, width):
    """Tokens that query t sees as they are."""
    return range(max(0, t - width + 1), t + 1)


def complete(t, ratio):
    """Entries that query t may see: the last of their tokens is t or came before."""
    return (t + 1) // ratio


def hits(products):
    """What the indexer makes of the products of queries and keys."""
    return np.maximum(products, 0)


def index_scores(x, latent, keys, weights, config, freqs):
    """``[L, E]``."""
    heads, dim = config["index_n_heads"], config["index_head_dim"]
    queries = linear(latent, weights, "indexer.wq_b").reshape(len(x), heads, dim)
    head_weights = linear(x, weights, "indexer.weights_proj") / math.sqrt(heads * dim)
    rows = [w @ hits(turn(q, t, freqs) @ keys.T) for t, (q, w) in enumerate(zip(queries, head_weights, strict=True))]
    return np.array(rows).reshape(len(x), len(keys))


def choose(scores, visible, count):
    """The entries that one query reads: the best of those that it may see."""
    return oracles.best(scores[:visible], count)


def sink_softmax(scores, sink):
    """Weights of the scores; the sink takes its share of the sum and has no value."""
    top = max(scores.max(), sink)
    return np.exp(scores - top) / (np.exp(scores - top).sum() + np.exp(sink - top))


def queries(x, weights, config):
    """``(q [L, N, H] before it is turned, latent [L, Q])``."""
    eps, shape = config["rms_norm_eps"], (len(x), config["num_attention_heads"], config["head_dim"])
    latent = norm(linear(x, weights, "wq_a"), weights, "q_norm", eps)
    return unit(linear(latent, weights, "wq_b").reshape(shape), eps), latent


def attention(x, weights, config, kind):
    """One layer, ``[L, D] -> [L, D]``; ``kind`` is "sliding", "compressed_sparse" or "heavily_compressed"."""
    x = np.asarray(x, np.float64)
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    eps, heads, dims = config["rms_norm_eps"], config["num_attention_heads"], config["qk_rope_head_dim"]
    freqs = frequencies(config["rope_parameters"]["main" if kind == "sliding" else "compress"], dims)
    ratio = config["compress_rates"].get(f"{kind}_attention")
    q, latent = queries(x, weights, config)
    rows = norm(linear(x, weights, "wkv"), weights, "kv_norm", eps)
    rows = np.stack([turn(row, t, freqs) for t, row in enumerate(rows)])
    sparse, pooled = kind == "compressed_sparse", np.zeros((0, config["head_dim"]))
    if ratio:
        pooled = entries(x, weights, "compressor", ratio, sparse, freqs, eps)
    if sparse:
        keys = entries(x, weights, "indexer.compressor", ratio, True, freqs, eps)
        scores = index_scores(x, latent, keys, weights, config, freqs)
    out = np.zeros(q.shape)
    for t in range(len(x)):
        visible = min(complete(t, ratio), len(pooled)) if ratio else 0
        read = choose(scores[t], visible, config["index_topk"]) if sparse else range(visible)
        seen = np.concatenate([rows[[*window(t, config["sliding_window"])]], pooled[[*read]]])
        for n in range(heads):
            weight = sink_softmax(seen @ turn(q[t, n], t, freqs) / math.sqrt(q.shape[2]), weights["attn_sink"][n])
            out[t, n] = turn_back(weight @ seen, t, freqs)
    groups, rank = config["o_groups"], config["o_lora_rank"]
    grouped = out.reshape(len(x), groups, -1)
    a = weights["wo_a.weight"].reshape(groups, rank, -1)
    low = np.concatenate([grouped[:, g] @ a[g].T for g in range(groups)], axis=1)
    return linear(low, weights, "wo_b")


def affinity(logits):
    return np.sqrt(np.log1p(np.exp(logits)))


def combine_weights(scores, bias, experts, scale):
    """``[L, K]``: what the outputs of the chosen experts are multiplied by. The bias chose them and does nothing else."""
    chosen = np.take_along_axis(scores, experts, axis=1)
    return scale * chosen / chosen.sum(axis=1, keepdims=True)


def feed_forward(x, weights, config, token_ids, kind):
    """One shared expert and K routed ones; ``kind`` is "hash_moe" or "moe"."""
    scores, limit = affinity(linear(x, weights, "gate")), config["swiglu_limit"]
    if kind == "hash_moe":
        experts = np.asarray(weights["gate.tid2eid"], int)[np.asarray(token_ids)]
    else:
        chosen = [oracles.best(row, config["num_experts_per_tok"]) for row in scores + weights["gate.bias"]]
        experts = np.array(chosen)
    combine = combine_weights(scores, weights.get("gate.bias"), experts, config["routed_scaling_factor"])

    def stacked(name):
        gate_up = np.concatenate([weights[f"{name}.w1.weight"], weights[f"{name}.w3.weight"]]).T
        return gate_up, weights[f"{name}.w2.weight"].T

    gate_up, down = zip(*(stacked(f"experts.{e}") for e in range(config["n_routed_experts"])), strict=True)
    routed = oracles.moe_forward(x, experts, combine, gate_up, down, limit)
    return routed + np.stack([oracles.swiglu_ffn(row, *stacked("shared_experts"), limit) for row in x])


def inside(weights, prefix):
    """The weights below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def joined(streams, weights, branch, config, run):
    """``[L, n, D]`` after one branch; `oracles.hyper_connection` has the equations."""
    assert config["hc_eps"] == config["rms_norm_eps"] == 1e-6
    count = config["hc_mult"]
    hyper = {"kernel": weights[f"hc_{branch}_fn"].T, "base": weights[f"hc_{branch}_base"]}
    hyper["scale"] = weights[f"hc_{branch}_scale"]
    settings = hyper, count, config["hc_sinkhorn_iters"]
    seen = [oracles.hyper_connection(token, np.zeros(token.shape[1]), *settings)[0] for token in streams]
    outputs = run(norm(np.stack(seen), weights, f"{branch}_norm", config["rms_norm_eps"]))
    pairs = zip(streams, outputs, strict=True)
    return np.stack([oracles.hyper_connection(token, output, *settings)[1] for token, output in pairs])


def block(streams, weights, config, token_ids, layer):
    """Both branches of one layer, ``[L, n, D] -> [L, n, D]``."""
    kind = config["layer_types"][layer].removesuffix("_attention")
    own = {name: np.asarray(value, np.float64) for name, value in inside(weights, f"layers.{layer}.").items()}
    streams = joined(streams, own, "attn", config, lambda x: attention(x, inside(own, "attn."), config, kind))
    ffn, kind = inside(own, "ffn."), config["mlp_layer_types"][layer]
    return joined(streams, own, "ffn", config, lambda x: feed_forward(x, ffn, config, token_ids, kind))


def transformer(weights, token_ids, config):
    """Logits ``[L, V]`` of one sequence."""
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = weights["embed.weight"][np.asarray(token_ids)]
    streams = np.repeat(x[:, None], config["hc_mult"], axis=1)
    for layer in range(config["num_hidden_layers"]):
        streams = block(streams, weights, config, token_ids, layer)
    raw = unit(streams.reshape(len(x), -1), config["rms_norm_eps"]) @ weights["hc_head_fn"].T
    read = oracles.sigmoid(raw * weights["hc_head_scale"] + weights["hc_head_base"]) + config["hc_eps"]
    x = np.einsum("ln,lnd->ld", read, streams)
    return linear(norm(x, weights, "norm", config["rms_norm_eps"]), weights, "head")


FILE_NAMES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.hc_head.hc_fn": "hc_head_fn",
    "model.hc_head.hc_base": "hc_head_base",
    "model.hc_head.hc_scale": "hc_head_scale",
}


def published(files):
    """The names of the published checkpoints, from those of a file that Transformers wrote."""
    found = {}
    for name, value in files.items():
        name = FILE_NAMES.get(name, name).removeprefix("model.")
        found[name.replace(".attn.norm.", ".attn.kv_norm.")] = value
    return found
