"""The definitions, as loops over tokens in float64. Nothing here is shared with the package.

Axis letters as there: B batch, L sequence, T tokens, D width, E experts, K experts a token, F expert width,
N query heads, M key/value heads, H head width, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softmax(x):
    shifted = np.exp(np.asarray(x, np.float64) - np.max(x))
    return shifted / shifted.sum()


def affinities(logits, score):
    """``[T, E]`` from logits ``[T, E]``."""
    logits = np.asarray(logits, np.float64)
    if score == "softmax":
        return np.stack([softmax(row) for row in logits])
    if score == "sigmoid":
        return sigmoid(logits)
    return np.sqrt(np.log1p(np.exp(logits)))


def route(logits, bias, top_k, *, score="softmax", normalize=True, scale=1.0):
    """``(experts [T, K], weights [T, K], affinities [T, E])``: pick by biased affinity, weigh by plain affinity."""
    probs = affinities(logits, score)
    experts, weights = [], []
    for row in probs:
        order = sorted(range(len(row)), key=lambda e: (-(row[e] + bias[e]), e))  # ties to the lower id
        chosen = order[:top_k]
        weight = [row[e] for e in chosen]
        if normalize:
            weight = [w / sum(weight) for w in weight]
        experts.append(chosen)
        weights.append([w * scale for w in weight])
    return np.array(experts), np.array(weights), probs


def best(scores, count):
    """Positions of the ``count`` largest, ties to the lower."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def group_limited(probs, bias, top_k, num_groups, top_k_groups):
    """Experts ``[T, K]``: groups ranked by the sum of their two best biased scores, then top-k inside those kept."""
    size = len(bias) // num_groups
    experts = []
    for row in np.asarray(probs, np.float64) + np.asarray(bias, np.float64):
        groups = [range(g * size, (g + 1) * size) for g in range(num_groups)]
        kept = best([sum(sorted((row[e] for e in group), reverse=True)[:2]) for group in groups], top_k_groups)
        allowed = sorted(e for g in kept for e in groups[g])
        experts.append([allowed[i] for i in best([row[e] for e in allowed], top_k)])
    return np.array(experts)


def expert_choice(probs, capacity, where=None):
    """``[T, E]``, True where expert e takes token t: each expert's best real tokens."""
    taken = np.zeros(np.shape(probs), bool)
    for e in range(taken.shape[1]):
        real = [t for t in range(len(taken)) if where is None or where[t]]
        for i in best([probs[t][e] for t in real], capacity):
            taken[real[i], e] = True
    return taken


def kept_by_capacity(experts, used, num_experts, capacity):
    """``[T, K]``: first choices of all tokens take slots before second choices, earlier tokens before later ones."""
    free = [capacity] * num_experts
    kept = np.zeros(np.shape(experts), bool)
    for k in range(kept.shape[1]):
        for t in range(len(kept)):
            if used[t][k] and free[experts[t][k]] > 0:
                free[experts[t][k]] -= 1
                kept[t, k] = True
    return kept


def swiglu_ffn(row, gate_up, down, limit=None, product=np.matmul):
    """One token ``[D]`` through one expert ``[D, 2F]``, ``[F, D]``; gate held from above only, up from both sides."""
    gate, up = np.split(product(np.asarray(row, np.float64), np.asarray(gate_up, np.float64)), 2)
    if limit is not None:
        gate, up = np.array([min(g, limit) for g in gate]), np.array([max(-limit, min(u, limit)) for u in up])
    return product(gate * sigmoid(gate) * up, np.asarray(down, np.float64))


def moe_forward(x, experts, weights, gate_up, down, limit=None, product=np.matmul):
    """``y[t] = sum_k weights[t, k] * FFN[experts[t, k]](x[t])``."""
    y = np.zeros(x.shape)
    for t in range(x.shape[0]):
        for k in range(experts.shape[1]):
            expert = int(experts[t, k])
            y[t] += float(weights[t, k]) * swiglu_ffn(x[t], gate_up[expert], down[expert], limit, product)
    return y


def load(experts, num_experts, where=None):
    counts = [0.0] * num_experts
    for t, chosen in enumerate(np.asarray(experts)):
        for expert in chosen:
            counts[expert] += 1.0 if where is None or where[t] else 0.0
    return np.array(counts)


def balance_loss(probs, experts, where=None):
    """``E / (T*K) * sum_e load_e * mean_t p_te``, rows normalised; 0 without tokens."""
    probs, experts = np.asarray(probs, np.float64), np.asarray(experts)
    real = [t for t in range(len(probs)) if where is None or where[t]]
    if not real:
        return 0.0
    counts = load(experts, probs.shape[1], where)
    total = 0.0
    for e in range(probs.shape[1]):
        total += counts[e] * sum(probs[t, e] / probs[t].sum() for t in real) / len(real)
    return probs.shape[1] / (len(real) * experts.shape[1]) * total


def sequence_balance_loss(probs, experts, segments, where=None):
    """Mean of `balance_loss` over the sequences that have a real token."""
    probs, experts, segments = np.asarray(probs), np.asarray(experts), np.asarray(segments)
    real = np.ones(len(probs), bool) if where is None else np.asarray(where)
    found = [segments == s for s in sorted(set(segments[real].tolist()))]
    losses = [balance_loss(probs[here], experts[here], real[here]) for here in found]
    return sum(losses) / max(len(losses), 1)


def importance_loss(weights, experts, num_experts):
    importance = [0.0] * num_experts
    for chosen, row in zip(np.asarray(experts), np.asarray(weights, np.float64), strict=True):
        for expert, weight in zip(chosen, row, strict=True):
            importance[expert] += weight
    return load_cv(importance) ** 2


# The balance loss as others define it: softmax affinities p [T, E], chosen ids [T, K], loss weight 1.


def switch_loss(p, experts):
    """Switch eq. 4-6: E times the product of two fractions, tokens sent and probability, for one expert a token."""
    num_experts = p.shape[1]
    sent = [np.mean(experts[:, 0] == e) for e in range(num_experts)]
    return num_experts * sum(f * p[:, e].mean() for e, f in enumerate(sent))


def transformers_loss(layers):
    """`load_balancing_loss_func`: layers pooled first, and the fractions of the K slots added, not averaged."""
    p, experts = (np.concatenate(parts) for parts in zip(*layers, strict=True))
    sent = np.stack([[np.mean(experts[:, k] == e) for e in range(p.shape[1])] for k in range(experts.shape[1])])
    return (sent * p.mean(axis=0)[None, :]).sum() * p.shape[1]


def gshard_loss(p, experts):
    """Algorithm 1: a mean over experts, not a sum times E, and first choices only."""
    return np.mean([np.mean(experts[:, 0] == e) * p[:, e].mean() for e in range(p.shape[1])])


def deepseek_loss(scores, experts, normalize):
    """One sequence, weight 1. V3 (eq. 17-20) makes rows sum to 1 first; V2 has a softmax and no need to."""
    tokens, num_experts = scores.shape
    share = scores / scores.sum(axis=1, keepdims=True) if normalize else scores
    f = [num_experts / (experts.shape[1] * tokens) * np.sum(experts == i) for i in range(num_experts)]
    return sum(f[i] * share[:, i].sum() / tokens for i in range(num_experts))


def megablocks_loss(layers):
    """Counts against mean scores, summed over layers, and one scale for everything."""
    tokens, num_experts = layers[0][0].shape
    scale = num_experts / (len(layers) * tokens * layers[0][1].shape[1])
    return scale * sum(np.dot(load(experts, num_experts), p.mean(axis=0)) for p, experts in layers)


def z_loss(logits, where=None):
    rows = [row for t, row in enumerate(np.asarray(logits, np.float64)) if where is None or where[t]]
    return sum(math.log(np.exp(row).sum()) ** 2 for row in rows) / max(len(rows), 1)


def bias_update(bias, counts, rate):
    mean = sum(counts) / len(counts)
    moved = [b + rate * (1 if c < mean else -1 if c > mean else 0) for b, c in zip(bias, counts, strict=True)]
    return np.array(moved) - sum(moved) / len(moved)


def max_violation(counts):
    return max(counts) / (sum(counts) / len(counts)) - 1


def load_cv(counts):
    mean = sum(counts) / len(counts)
    return math.sqrt(sum((c - mean) ** 2 for c in counts) / len(counts)) / mean


def load_entropy(counts):
    shares = [c / sum(counts) for c in counts if c > 0]
    return -sum(s * math.log(s) for s in shares) / math.log(len(counts))


def rope(x, theta):
    """``[L, H]``: the pair ``(x[i], x[i + H/2])`` as a complex number, turned by ``position * theta**(-2i/H)``."""
    length, width = x.shape
    out = np.zeros(x.shape)
    for position in range(length):
        for i in range(width // 2):
            turned = complex(x[position, i], x[position, i + width // 2])
            turned *= np.exp(1j * position * theta ** (-2 * i / width))
            out[position, i], out[position, i + width // 2] = turned.real, turned.imag
    return out


def attention(q, k, v):
    """Causal grouped-query attention, one query at a time: q ``[B, L, N, H]``, k and v ``[B, L, M, H]``."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    batch, length, heads, width = q.shape
    group = heads // k.shape[2]
    for b in range(batch):
        for n in range(heads):
            for t in range(length):
                seen_k, seen_v = k[b, : t + 1, n // group], v[b, : t + 1, n // group]
                out[b, t, n] = softmax(seen_k @ q[b, t, n] / math.sqrt(width)) @ seen_v
    return out


def rms_norm(x, scale, eps):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * scale


def hyper_connection(streams, output, weights, n, iterations, eps=1e-6):
    """One token, ``streams [n, D]``: what a branch reads, and the streams after it gave ``output [D]``."""
    streams, output = np.asarray(streams, np.float64), np.asarray(output, np.float64)
    flat = streams.reshape(-1)
    raw = flat / math.sqrt((flat**2).mean() + eps) @ np.asarray(weights["kernel"], np.float64)
    scale, base = np.asarray(weights["scale"], np.float64), np.asarray(weights["base"], np.float64)
    read = [sigmoid(scale[0] * raw[j] + base[j]) + eps for j in range(n)]
    write = [2 * sigmoid(scale[1] * raw[n + k] + base[n + k]) for k in range(n)]
    comb = np.array(
        [softmax([scale[2] * raw[i] + base[i] for i in range(2 * n + j * n, 3 * n + j * n)]) for j in range(n)]
    )
    comb = comb + eps
    for turn in range(iterations):
        if turn:
            for j in range(n):
                comb[j] = comb[j] / (comb[j].sum() + eps)
        for k in range(n):
            comb[:, k] = comb[:, k] / (comb[:, k].sum() + eps)
    seen = sum(read[j] * streams[j] for j in range(n))
    new = [sum(comb[j, k] * streams[j] for j in range(n)) + write[k] * output for k in range(n)]
    return seen, np.array(new)


def transformer(weights, tokens, config, product=np.matmul):
    """Logits ``[L, V]`` of one sequence from a flat ``path -> array`` of the model's weights.

    ``product(x, kernel)`` stands for every matmul but the router's.
    """
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    length = len(tokens)
    x = weights["embed/embedding"][np.asarray(tokens)]
    for i, layer in enumerate(config.layers):
        sizes = layer.attention
        n, m, h = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim
        w = {name.removeprefix(f"layers/{i}/"): v for name, v in weights.items() if name.startswith(f"layers/{i}/")}
        a = rms_norm(x, w["attention_norm/scale"], config.norm_eps)
        heads = {p: product(a, w[f"attention/{p}_proj/kernel"]) for p in "qkv"}
        q, k, v = heads["q"].reshape(length, n, h), heads["k"].reshape(length, m, h), heads["v"].reshape(length, m, h)
        q = np.stack([rope(q[:, j], sizes.rope_theta) for j in range(n)], axis=1)
        k = np.stack([rope(k[:, j], sizes.rope_theta) for j in range(m)], axis=1)
        x = x + product(attention(q[None], k[None], v[None])[0].reshape(length, -1), w["attention/o_proj/kernel"])
        a = rms_norm(x, w["ffn_norm/scale"], config.norm_eps)
        x = x + _feed_forward(w, a, layer.moe, tokens, product)
    x = rms_norm(x, weights["norm/scale"], config.norm_eps)
    return product(x, weights["embed/embedding"].T if config.tie_embeddings else weights["head/kernel"])


def int8_product(x, kernel):
    """``x @ kernel`` with each row of ``x`` in whole steps of its largest value over 127; kernel holds code * scale."""
    step = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(x / step) * step @ kernel


def _feed_forward(w, a, moe, tokens, product):
    if moe is None:
        dense = w["ffn/gate_up_proj/kernel"], w["ffn/down_proj/kernel"]
        return np.stack([swiglu_ffn(row, *dense, product=product) for row in a])
    kwargs = {"score": moe.score, "normalize": moe.normalize_weights, "scale": moe.routed_scaling_factor}
    experts, combine, probs = route(a @ w["ffn/router/kernel"], w["ffn/router/bias"], moe.top_k, **kwargs)
    if moe.select == "hash":
        experts = np.asarray(w["ffn/router/table"], int)[np.asarray(tokens)]
        combine = np.take_along_axis(probs, experts, axis=-1)
        combine = combine / combine.sum(axis=-1, keepdims=True) * moe.routed_scaling_factor
    y = moe_forward(a, experts, combine, w["ffn/experts/gate_up_proj"], w["ffn/experts/down_proj"], product=product)
    if moe.num_shared_experts:
        shared = w["ffn/shared/gate_up_proj/kernel"], w["ffn/shared/down_proj/kernel"]
        y = y + np.stack([swiglu_ffn(row, *shared, product=product) for row in a])
    return y


def filter_logits(row, top_k=None, top_p=None):
    """One row ``[V]``: the set kept by top-k, then by top-p, the rest at -inf."""
    kept = set(range(len(row)))
    if top_k is not None:
        kth = sorted(row, reverse=True)[min(top_k, len(row)) - 1]
        kept = {i for i in kept if row[i] >= kth}
    if top_p is not None:
        probs = softmax([row[i] if i in kept else -np.inf for i in range(len(row))])
        nucleus, mass = set(), 0.0
        for i in sorted(kept, key=lambda i: (-row[i], i)):
            if nucleus and mass >= top_p:
                break
            nucleus.add(i)
            mass += probs[i]
        kept = nucleus
    return np.array([row[i] if i in kept else -np.inf for i in range(len(row))])
