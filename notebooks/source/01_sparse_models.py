# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Sparse models: storing more than you compute
#
# A model's size used to be one number, and it told you both what the model costs to store and what it costs to run. A
# sparse model has two: **total** parameters are stored, **active** ones are multiplied for a token. This lesson counts
# both, from a real model and from the formula, then asks what the idle part is worth, and what it costs.
#
# | | |
# | --- | --- |
# | **You should know** | notebook 00, or: what a feed-forward layer is and that a router picks K of E of them |
# | **You will be able to** | count total and active parameters of any MoE from its config, DeepSeek-V4 included; size a fair dense opponent; say at equal what; name the four places where sparse models lose |
# | **Time** | about five minutes on two CPU cores, under 90 seconds with `MINIMOE_FAST=1` (then no model has learnt anything, and comparisons of quality mean nothing) |

# %%
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import minimoe
from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, plots
from minimoe.plots.sparse import IDLE
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 12 if FAST else 240
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; three models of about {STEPS} steps;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# Take a sparse and a dense model. "Which is better?" has no answer before you say **at equal what**: tokens, FLOPs,
# seconds, active parameters, total parameters, bytes of memory? A paper picks one. We look at several.
#
# **Predict before you run.** Your guesses come back further down, beside the numbers.

# %%
my_guesses = {
    "share of DeepSeek-V4-Pro's parameters that one token uses": 0.10,
    "sparse minus dense, bits per byte, equal tokens (negative: sparse is better)": -0.05,
    "the same at equal training time": 0.0,
    "share of 256 experts, 6 a token, that a batch of 32 tokens reads": 0.20,
}

# %% [markdown]
# ## Five tokens by hand
#
# A toy layer: tokens of D = 4 numbers, E = 4 experts with hidden width F = 3, K = 2 of them a token. A SwiGLU expert has
# three matrices of D x F, so 36 parameters; the router has D x E = 16. Work out four numbers on paper before you run
# the cell: parameters stored; parameters that one token meets; FLOPs of five tokens (a multiply-add counts as 2); and
# how many of the four experts these five tokens need *together*.

# %%
D, F, E, K = 4, 3, 4, 2
chosen = [(0, 1), (0, 1), (2, 0), (0, 1), (0, 3)]  # the experts of five tokens, as a router picked them
one_expert, router = 3 * D * F, D * E
stored, met = router + E * one_expert, router + K * one_expert
needed = sorted({expert for pair in chosen for expert in pair})
print(f"stored {stored}, one token meets {met} ({met / stored:.0%})")
print(f"five tokens: {5 * 2 * met} FLOPs, and experts {needed}: {router + len(needed) * one_expert} parameters are read")
plots.assignments(chosen, E, "Figure 1: five tokens, four experts")

# %% [markdown]
# > **Key observation.** "Active" is a statement about *one token*. Five tokens with two experts each already read the
# > whole layer. FLOPs follow the active parameters; memory traffic follows the distinct experts of the batch; memory
# > follows the total.
#
# ## The formula
#
# For token $t$, with gates $g_{t,i}$ that are zero for all but K of the E routed experts,
#
# $$h'_t=u_t+\sum_{i=1}^{N_s}\text{FFN}^{(s)}_i(u_t)+\sum_{i=1}^{E} g_{t,i}\,\text{FFN}_i(u_t)$$
#
# (DeepSeek-V3, arXiv 2412.19437, equation 12). The sum runs over all experts, the work only over those whose gate is not
# zero. So for L layers, attention A a layer, vocabulary V, S shared experts (norms left out):
#
# $$N_\text{total}=n_V VD+L\,(A+DE+3DF(E+S)),\qquad N_\text{active}=VD+L\,(A+DE+3DF(K+S))$$
#
# with $n_V = 1$ if the output head reuses the embedding and 2 if not. The input embedding is a look-up, not a product,
# and does not count as active; the output head does. Forward FLOPs are about $2N_\text{active}$ plus attention's scores.
# The library has both, for our toy and for a model:

# %%
from minimoe.cost import count_params, forward_flops_per_token, moe_layer_flops

toy = MoEConfig(d_model=D, d_expert=F, num_experts=E, top_k=K)
print(f"toy layer, five tokens: {moe_layer_flops(toy, tokens=5):.0f} FLOPs")
nano = ModelConfig.preset("nano")
count = count_params(nano)
print(f"nano: {count.total:,} total, {count.active:,} active, {forward_flops_per_token(nano) / 1e6:.2f} MFLOPs a token")

# %% [markdown]
# ### Does the formula agree with the arrays?
#
# Formulas in reports are easy to get wrong (a tied head, a forgotten router). So build the model and count its arrays;
# for the active ones, take K of the E slices of every stacked expert array.

# %%
from minimoe.training.loop import init_model

model = init_model(nano, 0)  # MoETransformer(nano, rngs=nnx.Rngs(0)), made by one compiled program
total = active = 0
for path, array in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    size = array[...].size
    total += size
    active += size * nano.moe.top_k // nano.moe.num_experts if "experts" in path else size
    if path[:2] in (("embed", "embedding"), ("layers", 0)):
        print(f"{'.'.join(map(str, path)):40} {array[...].shape!s:15} {size:8,}")
print(f"arrays:  {total:,} total, {active:,} active\nformula: {count.total:,} total, {count.active:,} active")
assert (total, active) == (count.total, count.active)

# %% [markdown]
# The one embedding matrix is also the output head, so it counts once in both numbers. Now its opponents. A dense model
# as wide as the K + S experts that a token meets costs the **same FLOPs**; one as wide as all E + S experts has the
# **same total**.

# %%
moe = nano.moe
configs = {
    "sparse": nano,
    "dense, equal FLOPs": nano.dense_equivalent(),
    "dense, equal total": nano.replace(moe=None, d_ff=(moe.num_experts + moe.num_shared_experts) * moe.d_expert),
}


def parts(count):
    """Parameters by part; what one token uses comes first."""
    named = {"embedding and head": count.embedding + count.head, "attention": count.attention + count.norms}
    named |= {"router": count.router, "shared or dense": count.shared, "routed, active": count.routed_active}
    return named | {IDLE: count.routed - count.routed_active}


counts = {name: count_params(config) for name, config in configs.items()}
for name, c in counts.items():
    flops = forward_flops_per_token(configs[name])
    print(f"{name:19} {c.total:9,} total {c.active:9,} active  {flops / 1e6:.2f} MFLOPs a token")
plots.parameter_parts({name: parts(c) for name, c in counts.items()}, "Figure 2: three models and their parts")

# %% [markdown]
# ## The press's numbers: DeepSeek-V4
#
# "Engages only a fraction of its capacity per step": which fraction? The sizes are published (`config.json` of
# DeepSeek-V4-Flash and -Pro on the Hugging Face hub; section 4.2.1 of the report, arXiv 2606.19348). `count_params` does
# embedding, router and experts exactly; only the attention is of a kind that this lesson's config cannot express.

# %%
v4 = {
    "V4-Flash": {"layers": 43, "d": 4096, "experts": 256, "f": 2048, "heads": 64, "q_rank": 1024, "groups": 8,
                 "csa": 21, "hca": 20, "published": (284e9, 13e9)},
    "V4-Pro": {"layers": 61, "d": 7168, "experts": 384, "f": 3072, "heads": 128, "q_rank": 1536, "groups": 16,
               "csa": 30, "hca": 31, "published": (1.6e12, 49e9)},
}  # fmt: skip


def without_attention(size):
    """All but attention: top-6, one shared expert, vocabulary 129,280, untied head; a token one number wide attends."""
    experts = MoEConfig(size["d"], size["f"], size["experts"], top_k=6, num_shared_experts=1, score="sqrtsoftplus")
    config = ModelConfig(129_280, size["d"], size["layers"], GroupedQueryConfig(1, 1, 2), experts, tie_embeddings=False)
    return count_params(config)


for name, size in v4.items():
    c, (whole, part) = without_attention(size), size["published"]
    experts = (c.routed + c.shared) / 1e9
    print(f"{name}: experts {experts:,.1f}B, {1e9 * experts / whole:.1%} of the published {whole / 1e9:,.0f}B total")
    print(f"   active experts {(c.routed_active + c.shared) / 1e9:.1f}B of the published {part / 1e9:.0f}B active")

# %% [markdown]
# The experts are nearly all of the total, but not of the active part: there attention and the output head count. V4's
# attention (sections 2.3.1 and 2.3.2 of the report; shapes from the published `model.py`): queries through a low rank,
# one shared key-value head of 512, a grouped output projection of rank 1,024 a group, and compressors with, in the CSA
# layers, a small indexer. Lesson 06 explains what they do; here we only count them.

# %%
import dataclasses


def v4_attention(size):
    """Attention, compressors and indexers of all layers."""
    d, heads, rank, groups = size["d"], size["heads"], size["q_rank"], size["groups"]
    queries, keys = d * rank + rank * heads * 512, d * 512
    output = heads * 512 * 1024 + groups * 1024 * d
    csa = 2 * d * 1024 + 2 * d * 256 + rank * 64 * 128 + 64 * d
    return size["layers"] * (queries + keys + output) + size["csa"] * csa + size["hca"] * 2 * d * 512


def v4_count(size):
    hyper = size["layers"] * 2 * 24 * 4 * size["d"]  # 4 residual streams, twice a layer: 4 + 4 + 4 x 4 mixing weights
    base = without_attention(size)
    return dataclasses.replace(base, attention=v4_attention(size), norms=base.norms + hyper)


v4_counts = {name: v4_count(size) for name, size in v4.items()}
for name, c in v4_counts.items():
    whole, part = v4[name]["published"]
    print(f"{name}: {c.total / 1e9:.1f}B total (published: {whole / 1e9:,.0f}B), "
          f"{c.active / 1e9:.2f}B active (published: {part / 1e9:.0f}B), {c.active / c.total:.1%}")
print(f"you guessed {list(my_guesses.values())[0]:.0%} for V4-Pro")

# %%
shares = {"nano": parts(counts["sparse"])} | {name: parts(c) for name, c in v4_counts.items()}
plots.parameter_parts(shares, "Figure 3: the same picture at a million and at a trillion parameters", share=True)

# %%
shown = {"nano": counts["sparse"], "small": count_params(ModelConfig.preset("small"))} | v4_counts
points = {name: (c.total, c.active) for name, c in shown.items()}
points["DeepSeek-V3 (published)"] = (671e9, 37e9)
plots.active_and_total(points, "Figure 4: active against total parameters")

# %% [markdown]
# > **Key observation.** Of V4-Pro, a token uses about one parameter in thirty. Our nano cannot get there: its embedding
# > alone weighs more than that. Ratios of active to total do not transfer between sizes. (The published 49B fits
# > only if the input embedding is not counted as active, the convention used here. The multi-token-prediction block is
# > left out. DeepSeek-V3's numbers are those of its report, arXiv 2412.19437.)
#
# ## The experiment on real text
#
# Three runs with the same recipe and the same order of batches: sparse; dense at equal tokens (and equal FLOPs); dense
# at **equal time**. For the last we must know how many steps the dense model takes while the sparse one takes one.

# %%
from minimoe.data import documents, load_tokenizer, training_data
from minimoe.training import Recipe, RunConfig, train

tokenizer, corpus = load_tokenizer(), documents()
data = training_data(corpus, tokenizer)
validation = [d for d in corpus if d.split == "val"]


def make_run(config, steps=STEPS):
    rate = 0.02 if config.moe else 0.0  # only a router has a balance to keep
    recipe = Recipe.preset("nano", steps=steps, router_bias_rate=rate, log_every=max(1, STEPS // 60))
    return RunConfig(config, recipe, {}, tokenizer.name)


# %% [markdown]
# ### A step of each: operations, seconds, bytes
#
# We time one training step of each model **in turn**, several rounds, so that a busy machine slows all three alike; the
# first round, with its compilation, is not counted. Training in float32 with AdamW keeps two moments for **every**
# parameter, idle ones too.

# %%
from minimoe.bench import alternate
from minimoe.training import init_training, train_step

batch = data.batch(0, 0, 8, nano.context_length)
given = [jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.where)]
state, steps = {}, {}
for name, config in configs.items():
    run = make_run(config)
    state[name] = init_training(run)

    def step(state=state[name], recipe=run.recipe):
        return train_step(*state, *given, jax.random.key(0), recipe=recipe).loss.block_until_ready()

    steps[name] = step
step_times = alternate(steps, rounds=3 if FAST else 10, warmup=1, pause=0.02)

# %%
def megabytes(tree):
    return sum(array.nbytes for array in jax.tree.leaves(nnx.state(tree)) if hasattr(array, "nbytes")) / 1e6


rows = {
    name: {
        "MFLOPs per token": forward_flops_per_token(configs[name]) / 1e6,
        "ms per step": 1000 * step_times[name].median,
        "MB weights": megabytes(model),
        "MB AdamW": megabytes(optimizer),
    }
    for name, (model, optimizer) in state.items()
}
plots.costs_side_by_side(rows, "Figure 5: a training step of 8 x 256 tokens")

# %%
base = rows["dense, equal FLOPs"]
for name, row in rows.items():
    print(f"{name:19}", "  ".join(f"{label} {value / base[label]:.2f}x" for label, value in row.items()))

# %% [markdown]
# > **Key observation.** In FLOPs the sparse model is the small dense one, in bytes the large one; in seconds look for it
# > between the two. The sparse step has the small model's products in smaller pieces, a sort, two gathers, and an
# > optimiser that walks over all the experts.
#
# ### Train

# %%
def train_one(name, run):
    started, steps = time.monotonic(), run.recipe.steps

    def say(record):
        if record["kind"] == "train" and record["step"] % (STEPS // 3) == 0:
            left = (time.monotonic() - started) / record["step"] * (steps - record["step"])
            print(f"{name}: step {record['step']}/{steps}  loss {record['loss']:.2f}  ETA {left:.0f} s", flush=True)

    return train(run, data, validation, tokenizer, on_record=say)


# %%
ratio = step_times["sparse"].median / step_times["dense, equal FLOPs"].median
equal_time_steps = round(STEPS * min(ratio, 1.5))  # the cap keeps this notebook within its time
print(f"dense takes {ratio:.2f} steps while sparse takes one: {equal_time_steps} steps for the time of {STEPS}")
results = {name: train_one(name, make_run(configs[name])) for name in ("sparse", "dense, equal FLOPs")}
results["dense, equal time"] = train_one("dense, equal time", make_run(configs["dense, equal FLOPs"], equal_time_steps))

# %% [markdown]
# ### At equal tokens, and against the clock

# %%
runs = {name: result.records for name, result in results.items()}
pair = {name: runs[name] for name in ("sparse", "dense, equal FLOPs")}
plots.compare_runs(pair, x="tokens", skip=0.1, title="Figure 6: equal tokens, equal FLOPs")

# %% [markdown]
# Against the clock. Two runs one after the other would mostly compare what else the machine was doing meanwhile, so the
# clock here is the number of steps times the step time measured in turn above; compilation is left out.

# %%
step_of = {"sparse": "sparse", "dense, equal time": "dense, equal FLOPs"}  # the same model, so the same step
timed = {}
for name, timed_as in step_of.items():
    lines = [r for r in results[name].records if r["kind"] == "train"]
    timed[name] = [r | {"seconds": r["step"] * step_times[timed_as].median} for r in lines]
plots.compare_runs(timed, x="seconds", skip=0.1, title="Figure 7: equal time")

# %%
bits = {name: result.evaluation.bits_per_byte for name, result in results.items()}
for name, value in bits.items():
    print(f"{name:19} {value:.3f} bits per byte on held-out text (quick protocol)")
tokens_gap, time_gap = (bits["sparse"] - bits[name] for name in ("dense, equal FLOPs", "dense, equal time"))
print(f"sparse minus dense: equal tokens {tokens_gap:+.3f} (you guessed {list(my_guesses.values())[1]:+.3f}), "
      f"equal time {time_gap:+.3f} (you guessed {list(my_guesses.values())[2]:+.3f})")

# %% [markdown]
# ### How much of that is luck?
#
# One seed is one draw. This comparison was also run with several seeds and more steps, and scored on the whole
# validation text. What follows is **recorded**, not computed here: `minimoe/records/sparse-vs-dense.json`, made by
# `minimoe experiments run sparse-vs-dense`. (There, the step count for equal time comes from the whole training time of the
# first two runs, compilation included.)

# %%
from minimoe.experiments import read_record

recorded = read_record("sparse-vs-dense")["runs"]
groups = {}
for name, run in recorded.items():
    groups.setdefault(name.rpartition("-")[0], []).append(run)
for name, members in groups.items():
    steps = members[0]["config"]["recipe"]["steps"]
    seconds = [run["train_seconds"] for run in members]
    span = f"{min(seconds):.0f} to {max(seconds):.0f} s"
    print(f"{name:16} seeds: {len(members)}, {steps} steps each, {span}, {members[0]['machine']}")
scores = {name: [run["full"]["bits_per_byte"] for run in members] for name, members in groups.items()}
plots.seeds(scores, "bits per byte, whole validation text (lower is better)", "Figure 8: recorded, one dot a seed")

# %%
curves = {name: [run["curve"] for run in members] for name, members in groups.items()}
plots.curves_with_spread(curves, x="tokens", skip=0.3, title="Figure 9: recorded, mean and range of the seeds")

# %%
sparse_scores = np.array(scores["sparse"])
for name in (name for name in scores if name != "sparse"):
    gap = sparse_scores.mean() - np.mean(scores[name])
    noise = max(np.ptp(sparse_scores), np.ptp(scores[name]))
    verdict = "larger than" if abs(gap) > noise else "NOT larger than"
    print(f"sparse - {name}: {gap:+.3f}; the gap is {verdict} the range between seeds ({noise:.3f})")

# %% [markdown]
# > **Key observation.** Read the gap together with the seeds, and the two gaps together with each other. Equal tokens
# > flatter the sparse model, because its slower step is not charged; equal time charges everything, the quality of the
# > code included.
#
# ## Where sparse models lose
#
# ### 1. Steps and memory
#
# That was Figure 5: the memory of the dense model of equal total, whatever the step time came to.
#
# ### 2. Batches
#
# A single token reads K experts of E. With B tokens that choose independently and evenly, an expert is missed by all of
# them with probability $(1-K/E)^B$, so a share $1-(1-K/E)^B$ is read. The dots are our trained model on held-out text:
# B tokens from random places (as if decoding B conversations), and B in a row (as in reading a prompt).

# %%
text = "".join(d.text[:2500] for d in validation[:: max(1, len(validation) // 12)])
ids = tokenizer.encode(text)[: 256 * 16]
_, routing = results["sparse"].model(jnp.asarray(ids[: len(ids) // 256 * 256], jnp.int32).reshape(-1, 256))
picked = [np.asarray(layer.experts) for layer in routing]
rng = np.random.default_rng(0)
sizes = [1, 2, 4, 8, 16, 32, 64, 128]


def share_read(size, scattered):
    """Distinct experts over all experts, averaged over layers and 100 draws of a batch."""
    shares = []
    for _ in range(100):
        first = rng.integers(0, len(picked[0]) - size)
        rows = rng.integers(0, len(picked[0]), size) if scattered else np.arange(first, first + size)
        shares += [len(np.unique(experts[rows])) / nano.moe.num_experts for experts in picked]
    return float(np.mean(shares))


# %%
shapes = {"formula, 2 of 8 (nano)": (2, 8), "formula, 6 of 256 (V4-Flash)": (6, 256), "formula, 6 of 384 (V4-Pro)": (6, 384)}
formula = {name: [1 - (1 - k / e) ** size for size in sizes] for name, (k, e) in shapes.items()}
measured = {
    "nano, scattered tokens": [share_read(size, scattered=True) for size in sizes],
    "nano, tokens in a row": [share_read(size, scattered=False) for size in sizes],
}
at_32 = formula["formula, 6 of 256 (V4-Flash)"][sizes.index(32)]
print(f"32 tokens, 6 of 256: {at_32:.0%}; you guessed {list(my_guesses.values())[3]:.0%}")
plots.experts_read(sizes, formula, measured, "Figure 10: experts read by a batch")

# %% [markdown]
# For one conversation, sparsity is a gift: decoding is limited by reading weights, and a token reads few. But *all* of
# them must be in memory, ready. V4-Pro stores its experts in FP4, 4.25 bits a weight with the scales (lesson 04):

# %%
for name, c in v4_counts.items():
    resident, read = c.routed * 4.25 / 8, c.routed_active * 4.25 / 8
    print(f"{name}: routed experts fill {resident / 1e9:.0f} GB; one token reads {read / 1e9:.2f} GB ({read / resident:.1%})")

# %% [markdown]
# ### 3. Small and middling batches, on a clock
#
# One feed-forward layer by itself, larger than nano's so that its weights do not fit a core's nearest caches, with T
# tokens at once: sparse, dense at equal FLOPs, dense at equal total. Each is compiled, then timed in turn.

# %%
from minimoe.layers import SwiGLU
from minimoe.moe import MoELayer

WIDTH, HIDDEN = 512, 512
layers = {
    "sparse, 2 of 8 and 1 shared": MoELayer(MoEConfig(WIDTH, HIDDEN, 8, 2, num_shared_experts=1), rngs=nnx.Rngs(0)),
    "dense, equal FLOPs": SwiGLU(WIDTH, 3 * HIDDEN, rngs=nnx.Rngs(0)),
    "dense, equal total": SwiGLU(WIDTH, 9 * HIDDEN, rngs=nnx.Rngs(0)),
}
run_layer = jax.jit(lambda graphdef, weights, x: jax.tree.leaves(nnx.merge(graphdef, weights)(x))[0], static_argnums=0)
tokens_at_once = [1, 16, 256] if FAST else [1, 4, 16, 64, 256, 1024]
microseconds = {name: [] for name in layers}
for size in tokens_at_once:
    x = jax.random.normal(jax.random.key(0), (size, WIDTH))
    calls = {
        name: lambda split=nnx.split(layer), x=x: run_layer(*split, x).block_until_ready() for name, layer in layers.items()
    }
    for name, timing in alternate(calls, rounds=5 if FAST else 15, warmup=2).items():
        microseconds[name].append(1e6 * timing.median / size)

# %%
names = list(layers)
for name in names[1:]:
    ratios = [a / b for a, b in zip(microseconds[names[0]], microseconds[name], strict=True)]
    print(f"sparse time over {name}:", "  ".join(f"T={t}: {r:.2f}x" for t, r in zip(tokens_at_once, ratios, strict=True)))
plots.time_per_token(tokens_at_once, microseconds, "Figure 11: one layer, T tokens at once")

# %% [markdown]
# > **Key observation.** Three regimes. One token: the sparse layer reads as few weights as the small dense one, and what
# > the clock shows on top is routing and fetching the experts. Tens of tokens: it reads all its experts, each for a
# > handful of rows, and pays like the large one, or more: for up to 16 assignments our code (`few_tokens` in
# > `minimoe/moe/dropless.py`) fetches an expert anew for every token that uses it. Thousands of tokens: every expert has enough rows to be busy, and FLOPs decide.
# > Serving systems gather very many conversations into a batch for the sake of this curve.
#
# ### 4. What FLOPs leave out
#
# On many machines the experts live on different chips, and each token's vector travels to its experts and back (lesson
# 08). Balance must be kept, or the busiest expert makes all others wait (lesson 03). Many narrow experts instead of few
# wide ones, at the same active parameters, is a further dial: lesson 02.
#
# ## What to distrust
#
# - **Sizes.** At two million parameters the embedding and the head are a large part of "active", and eight experts are
#   few. V4's share of 3% cannot be rehearsed here, only its arithmetic.
# - **The clock.** Two CPU cores. A GPU moves the crossings in Figures 5 and 11, often against the sparse layer, because it
#   wants larger products. Our dense layers are one plain matrix product, as tuned as such things get; our sparse one
#   is a few hundred lines.
# - **Short training.** A few hundred steps see each expert learn from a fraction of the tokens. Gaps between curves at
#   this point are partly about who starts faster.
# - **Equal FLOPs as a standard.** It is the comparison that sparse models were made to win. At equal *total* parameters
#   the dense model is usually the better one per token, and costs more for each. We timed it and did not train it: try it.
# - **Formulas that assume even, independent choices.** Compare dots and lines in Figure 10.
#
# ## Exercises
#
# Three functions to write, each in place of its `raise`. `check` says what is wrong in the idea, not only that a number
# differs; `hint("sparse.params")` says more, three times. The same checks grade a file: `minimoe exercises --help`.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["sparse.params"]

# %%
def params(d_model, d_expert, num_experts, top_k, num_shared_experts):
    raise NotImplementedError("not written yet: sparse.params")


check("sparse.params", params);

# %%
exercises()["sparse.dense_width"]

# %%
def dense_width(d_model, d_expert, num_experts, top_k, num_shared_experts):
    raise NotImplementedError("not written yet: sparse.dense_width")


check("sparse.dense_width", dense_width);

# %%
exercises()["sparse.moe_forward"]

# %%
def moe_forward(x, experts, weights, gate_up, down):
    raise NotImplementedError("not written yet: sparse.moe_forward")


check("sparse.moe_forward", moe_forward);

# %% [markdown]
# And without a check: train `configs["dense, equal total"]` for as many *seconds* as the sparse model had. Which wins,
# and which of the two would you rather serve?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
