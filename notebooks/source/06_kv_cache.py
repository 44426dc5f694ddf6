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
# # 06 · The cache: what a model keeps of what it has read
#
# A model that writes keeps something of every token before. With a context of a million tokens, this memory can be larger
# than the weights. DeepSeek-V4 makes it small in two ways: it keeps less of each token, and it keeps fewer things than tokens.
# This lesson builds both, weighs them, and asks of "9.5 times less memory": **of what, compared with what, and from which
# length on?**
#
# | | |
# | --- | --- |
# | **You should know** | lesson 00, or: what attention, a query, a key and a value are |
# | **You will be able to** | say what a cache holds and weigh it; fold a matrix into the query so that keys are never formed; pool tokens into entries without showing the future; name what stays when the context is short; take "9.5 times" apart into its terms |
# | **Time to study** | 45 minutes; the three exercises take 15 to 20 minutes each |
# | **Time to run** | about a minute on two free CPU cores, longer on busy ones |

# %%
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Markdown, display

import minimoe
from minimoe import attention, cost, plots
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# The press wrote: "9.5 times less memory". The report on DeepSeek-V4 says it of one thing: the cache of one sequence of
# 1,048,576 tokens, V4-Pro against V3.2.
#
# **Predict before you run.** Replace each `None` by a number. The notebook compares later.

# %%
my_guesses = {
    "V4-Pro, one more token of context: bytes": None,
    "cache of V3.2 over cache of V4-Pro at 4,096 tokens, everything counted": None,
    "context below which V4-Pro keeps more bytes than V3.2": None,
    "FLOPs of a token of V4-Pro at 4,096 tokens: percent of V3.2's": None,
}
questions = list(my_guesses)


def compare(question, measured):
    """Sets a prediction beside the measurement; without a prediction it waits for one."""
    if my_guesses[question] is None:
        print(f"fill in your prediction at the top and run both cells again: {question}")
    else:
        print(f"{question}: you predicted {my_guesses[question]:g}, measured {measured:,.4g}")


# %% [markdown]
# ## Six tokens by hand
#
# One head, six tokens. The sixth token asks: its query is compared with six keys, and six values are averaged. Five of
# the keys and values were there before. Do we have to compute them again?

# %%
rng = np.random.default_rng(0)
tokens = rng.normal(size=(6, 8))  # six tokens of width 8
W_q, W_k, W_v = rng.normal(size=(3, 8, 4)) / 3  # one head of width 4


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def answer(query, keys, values):
    return softmax(keys @ query / 2) @ values  # 2 is the root of the width


kept_keys, kept_values = [], []
for t, token in enumerate(tokens):
    kept_keys.append(token @ W_k)
    kept_values.append(token @ W_v)
    one_at_a_time = answer(token @ W_q, np.array(kept_keys), np.array(kept_values))
    np.testing.assert_allclose(one_at_a_time, answer(token @ W_q, tokens[: t + 1] @ W_k, tokens[: t + 1] @ W_v))
numbers = np.size(kept_keys) + np.size(kept_values)
print(f"after six tokens we keep {numbers} numbers: 6 tokens x (a key and a value) x 4. In float32 {4 * numbers} bytes.")

# %% [markdown]
# Keys and values of earlier tokens never change, because no token sees a later one. So they are kept: this is the *KV
# cache*. It saves time and costs memory. A model keeps
#
# $$\text{bytes a token} = \text{layers}\times 2\times\text{key/value heads}\times\text{head width}\times\text{bytes a number}$$
#
# The query is not in it: it is used once.
#
# ## Keep less of a token
#
# **Grouped-query attention** (arXiv 2305.13245) lets several query heads share a key and a value. **Multi-head latent
# attention** (DeepSeek-V2, arXiv 2405.04434) keeps one short vector a token, the *latent*, from which the keys and values of
# all heads are made by matrices. Made when? In decoding, never. A key is $W_k c$, and the matrix can move to the other side:
#
# $$q^\top (W_k c) = (W_k^\top q)^\top c$$
#
# The query is turned into the space of the latents once. Then it is compared with the latents themselves.

# %%
heads, width, rank, length = 4, 16, 12, 50
keys = jax.random.split(jax.random.key(1), 3)
q = jax.random.normal(keys[0], (heads, width))
W = jax.random.normal(keys[1], (heads, width, rank))  # makes a key of each head out of a latent
latents = jax.random.normal(keys[2], (length, rank))  # what the cache holds

formed = jnp.einsum("nwr,sr->nsw", W, latents)  # keys of all heads and tokens
long_way = jnp.einsum("nw,nsw->ns", q, formed)
absorbed = jnp.einsum("nwr,nw->nr", W, q)  # the matrix moves to the query
short_way = jnp.einsum("nr,sr->ns", absorbed, latents)
np.testing.assert_allclose(long_way, short_way, rtol=2e-5, atol=2e-5)
print(f"the same scores; the long way forms {formed.size} numbers of keys, the short way {absorbed.size} of queries")
print(f"and it keeps {rank} numbers a token in place of {2 * heads * width}")

# %% [markdown]
# The values are treated likewise: their matrix moves behind the average. One thing does not fit. A *rotary position* (RoPE, arXiv
# 2104.09864) says where a token stands by turning its key, pair of numbers by pair, by angles that grow with its place. That turn
# stands between $q$ and $W_k$. So a small part of the key, shared by all heads, is kept
# apart and turned. V3 keeps 512 + 64 numbers.
#
# ## Keep fewer things than tokens
#
# V4 goes on from here. A **window** keeps the last tokens as they are. Older text is kept as *entries*: one entry stands for
# a whole block of tokens. An entry is a weighted mean, and the weights are learnt. It is key and value at once.
#
# First, who may see an entry? It pools the tokens of its block. A query before the last token of that block must not see it,
# or it would see its own future.
#
# ### Exercise: what a query sees

# %%
from minimoe.exercises import check, exercises, hint

exercises()["cache.visible"]

# %%
def visible(length, ratio, window):
    raise NotImplementedError("not written yet: cache.visible")


check("cache.visible", visible);

# %% [markdown]
# Now the entries. DeepSeek-V4 calls the plain version *heavily compressed attention* (HCA, 128 tokens an entry).
#
# ### Exercise: one entry out of a block

# %%
exercises()["cache.compress"]

# %%
def compress(values, gates, bias):
    raise NotImplementedError("not written yet: cache.compress")


check("cache.compress", compress);

# %% [markdown]
# *Compressed sparse attention* (CSA, 4 tokens an entry) differs in two points. Its entries overlap: each also pools the block
# before its own. And there are too many of them to read all. A small scorer, the *lightning indexer*, ranks the entries for
# each query, and only the best are read. The library has all of them, and each file opens with a picture of what a query sees.

# %%
sizes = {"num_heads": 4, "head_dim": 32, "rope_dim": 8, "q_rank": 64, "out_groups": 2, "out_rank": 64, "window": 4}
kinds = {
    "multi-head": attention.GroupedQueryConfig(4, 4, 32),
    "grouped-query": attention.GroupedQueryConfig(4, 2, 32),
    "latent": attention.MultiHeadLatentConfig(4, kv_rank=32, nope_dim=24, rope_dim=8, v_dim=32),
    "sliding window": attention.SlidingWindowConfig(**sizes),
    "CSA": attention.CompressedSparseConfig(**sizes, ratio=4, index_heads=4, index_dim=16, index_top_k=2),
    "HCA": attention.HeavilyCompressedConfig(**sizes, ratio=8),
}
D = 128
modules = {
    name: kind.build(D, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(i))
    for i, (name, kind) in enumerate(kinds.items())
}



# %%
x = jax.random.normal(jax.random.key(2), (24, D))
noise = jax.random.normal(jax.random.key(3), (24, D)) / 10
other = jnp.tile(x, (24, 1, 1)).at[jnp.arange(24), jnp.arange(24)].add(noise)  # text j has another token j


def changed(module):
    """Which outputs change when one token changes: [T outputs, T tokens]."""
    outputs = nnx.jit(lambda m, x: m(x)[0])(module, jnp.concatenate([x[None], other]))
    return np.asarray(jnp.abs(outputs[1:] - outputs[:1]).max(axis=-1) > 1e-6).T


seen = {name: changed(module) for name, module in modules.items()}
assert not any(np.triu(mask, 1).any() for mask in seen.values()), "a token saw the future"
no_entries = np.zeros((24, 0), bool)
plots.what_queries_see({name: (mask, no_entries) for name, mask in seen.items()},
                       "Figure 1: which token (column) changes which output (row)")

# %% [markdown]
# What to see: no cell lies right of the diagonal, so no kind sees the future. The window forgets what is older than four
# tokens. HCA sees older tokens too, but block by block: at query 7 the first block of eight is complete, and all eight appear
# at once. CSA reads two entries at most, and which two is up to the query: its rows have gaps. The tokens in the gaps are in
# the cache. This query did not choose them.
#
# ## Weigh the arrays
#
# The formula says what a cache weighs. We build the caches for 64, 256 and 1,024 tokens and weigh the arrays themselves.

# %%
def held(kind, context):
    arrays = jax.tree.leaves(kind.init_cache(1, context, attention.KVCache.zeros, "float32"))
    return sum(array.nbytes for array in arrays if array.ndim > 0)  # the counter of tokens is left aside


lines = ["| one layer, float32 | 64 tokens | 256 | 1,024 | one more token, for long | fixed |", "| --- " * 6 + "|"]
for name, kind in kinds.items():
    weighed = [held(kind, context) for context in (64, 256, 1024)]
    assert weighed == [kind.cache_bytes(context, "float32") for context in (64, 256, 1024)]
    more = kind.cache_bytes_per_token("float32")
    lines.append(f"| {name} | " + " | ".join(f"{w:,}" for w in weighed) + f" | {more:,g} | {weighed[-1] - 1024 * more:,g} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# What to see: the arrays are as large as the formula says, to the byte. The *fixed* column is new. CSA and HCA keep a window,
# and the raw numbers of the block that is not complete yet, its *tail*. At 64 tokens CSA's fixed part is most of what it holds.
#
# ### Exercise: bytes

# %%
exercises()["cache.bytes"]

# %%
def cache_bytes(context, ratios, indexed, window, entry, key):
    raise NotImplementedError("not written yet: cache.bytes")


check("cache.bytes", cache_bytes);

# %% [markdown]
# ## Is it the same model?
#
# A cache is right when writing token by token gives what reading all at once gives. For compressed kinds this is not
# obvious: entries are made while the text arrives. We feed 24 tokens in uneven pieces.

# %%
for name, module in modules.items():
    whole, _ = module(x[None])
    state, parts, start = kinds[name].init_cache(1, 24, attention.KVCache.zeros, "float32"), [], 0
    for piece in (1, 5, 2, 9, 1, 6):
        out, state = module(x[None, start : start + piece], state)
        parts.append(out)
        start += piece
    error = float(jnp.abs(jnp.concatenate(parts, axis=1) - whole).max() / jnp.abs(whole).max())
    assert error < 1e-5, (name, error)
    print(f"{name:15} in pieces of 1, 5, 2, 9, 1, 6: largest difference {error:.1e} of the largest output")

# %% [markdown]
# ## The time of a step
#
# How long does one token take when so many are in the cache? One layer of each kind, one sequence, this machine. The median of
# 40 steps, kinds in turn. CSA and HCA have V4's window of 128 and its 4 and 128 tokens an entry here.

# %%
long = sizes | {"window": 128}
timed = {name: kinds[name] for name in ("multi-head", "grouped-query", "latent")}
timed["CSA"] = attention.CompressedSparseConfig(**long, ratio=4, index_heads=4, index_dim=16, index_top_k=64)
timed["HCA"] = attention.HeavilyCompressedConfig(**long, ratio=128)
contexts = (256, 4096) if FAST else (256, 1024, 4096, 16_384)


rounds = 10 if FAST else 40


def prepare(kind, context):
    """A compiled step, and a cache that holds ``context`` tokens and has room for those to be written."""
    module = kind.build(D, out_scale=1.0, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    state = kind.init_cache(1, context + rounds + 1, attention.KVCache.zeros, "float32")
    state = jax.tree.map(lambda a: jnp.full_like(a, 0.01 if a.ndim else context), state)
    step = jax.jit(lambda x, state: module(x, state), donate_argnums=1)  # the new cache takes the memory of the old one
    return step, step(x[None, :1], state)[1]


# %%
steps = {(name, context): prepare(kind, context) for name, kind in timed.items() for context in contexts}
clocks = {key: [] for key in steps}
for _ in range(rounds):
    for key, (run, state) in steps.items():
        start = time.perf_counter()
        out, state = run(x[None, :1], state)
        out.block_until_ready()
        clocks[key].append(time.perf_counter() - start)
        steps[key] = run, state
lines = ["| microseconds a token and layer | " + " | ".join(f"{c:,}" for c in contexts) + " |"]
lines.append("| --- " * (1 + len(contexts)) + "|")
for name in timed:
    lines.append(f"| {name} | " + " | ".join(f"{1e6 * np.median(clocks[name, c]):,.0f}" for c in contexts) + " |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# Compare within a row, not between rows: the kinds have different matrices, and at these sizes calling a program costs more
# than its arithmetic. The part that *grows* with the context is what the cache decides: it is the reading of what is kept.
#
# Other programs disturb a clock. The record below was taken while nothing else ran: one layer of width 256, eight heads of
# 64, a window of 32, entries of 4 and of 16 tokens, many steps in one compiled loop. `minimoe bench context` takes it again.

# %%
quiet = minimoe.experiments.read_record("bench-context")["reports"][0]
lines = ["| recorded, microseconds a token | " + " | ".join(f"{c:,} tokens" for c in quiet["contexts"]) + " | last over first |"]
lines.append("| --- " * (2 + len(quiet["contexts"])) + "|")
for name, row in quiet["results"].items():
    cells = [f"{row[f'us_at_{c}']['median']:,.0f}" for c in quiet["contexts"]]
    lines.append(f"| {name} | " + " | ".join(cells) + f" | {row['growth']['median']:.1f} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# What to see: the last column. A kind that keeps every token reads all of it for one more, also the latent one. The sliding
# window reads the same at every length. CSA and HCA read entries, and there are fewer of them than tokens.
#
# ## The published models
#
# The same formula, with the published sizes. V3.2 stores 656 bytes a token and layer (512 numbers of the latent in FP8, 4 scales
# in float32, 64 numbers that carry the position in bfloat16) and 132 for its indexer (128 numbers in FP8, a scale), in 61 layers. V4 stores an entry of 512 numbers in 584 bytes: 448 in FP8, the 64 that carry the
# position in bfloat16, 7 scales, and one byte of padding. A key of the indexer is 64 bytes of FP4 and 4 scales.

# %%
models = {name: cost.published_model(f"deepseek-{name.lower()}") for name in ("V3", "V3.2", "V4-Pro", "V4-Flash")}
rows = {"multi-head of V3's width": 61 * 2 * 128 * 128 * 2, "grouped-query, 8 heads": cost.gqa_bytes_per_token(61)}
rows |= {name: model.kv_bytes_per_token() for name, model in models.items()}
for name, value in rows.items():
    print(f"{name:25} {value:12,.2f} bytes a token; {value * 2**20 / 1e9:8,.2f} GB at 1,048,576 tokens")
compare(questions[0], rows["V4-Pro"])
plots.bytes_per_token(rows, "Figure 2: what one more token adds, published models")

# %% [markdown]
# What to see: most of the way was gone before V4. From multi-head to V3 is a factor of 57, from V3.2 to V4-Pro one of 9.6. A
# factor needs its baseline.
#
# ## From which length on?
#
# The window and the tails do not grow. Below some length they are all there is.

# %%
pro, v32 = models["V4-Pro"], models["V3.2"]
lengths = [2**i for i in range(6, 21)]


def state_bytes(model, context):
    return sum(model.cache_bytes(context).values())


crossing = next(n for n in range(1, 10**6) if state_bytes(pro, n) < state_bytes(v32, n))
print(f"V4-Pro keeps fewer bytes than V3.2 from {crossing:,} tokens on")
compare(questions[2], crossing)
for n in (1024, 4096, 32_768, 1_048_576):
    old, new = state_bytes(v32, n), state_bytes(pro, n)
    print(f"{n:9,} tokens: V3.2 {old / 1e6:10,.1f} MB, V4-Pro {new / 1e6:9,.1f} MB, ratio {old / new:.2f}")
compare(questions[1], state_bytes(v32, 4096) / state_bytes(pro, 4096))
lines_of = {"V3.2": [state_bytes(v32, n) for n in lengths], "V4-Pro, everything": [state_bytes(pro, n) for n in lengths]}
lines_of["V4-Pro, entries alone"] = [n * pro.kv_bytes_per_token() for n in lengths]
plots.bytes_against_context(lengths, lines_of, (crossing, state_bytes(pro, crossing), f"below {crossing:,} tokens V4-Pro keeps more"),
                            "Figure 3: bytes of one sequence")

# %% [markdown]
# What to see: the line of "everything" is flat at first. That is the fixed part. A ratio above nine needs a long context.
#
# ## Which digit is fragile?
#
# "9.5" has two digits. We count again in five ways that an honest person might choose.

# %%
n = 2**20
parts = pro.cache_bytes(n)
growing, window, tails = parts["entries"] + parts["indexer keys"], parts["window"], parts["tails"]
base = state_bytes(v32, n)
share = 583 / 584  # an entry without its byte of padding
full = {"dtype": "bfloat16"}
counts = {
    "entries, keys and window": base / (growing + window),
    "without the window": base / growing,
    "with the tails": base / (growing + window + tails),
    "without the byte of padding": base / ((parts["entries"] + window) * share + parts["indexer keys"]),
    "both models in bfloat16": sum(v32.cache_bytes(n, **full).values())
    / sum(v for part, v in pro.cache_bytes(n, **full).items() if part != "tails"),
}
for way, ratio in counts.items():
    print(f"{way:30} {ratio:.3f}")

# %% [markdown]
# The first digit stands in every way of the same storage. The second does not: one byte of padding in 584 decides it. In
# bfloat16 on both sides the ratio is below nine, so a part of the 9.5 is storage in fewer bits and not compression.
#
# ## What it does not say
#
# - **Nothing about weights.** V4-Pro has more than twice the parameters of V3.2. They have to be loaded too.
# - **Nothing about time at short contexts.** FLOPs are another sum:

# %%
for n in (4096, 131_072, 2**20):
    shares = cost.flops_shares(pro, v32, n).values()
    print(f"{n:9,} tokens: a token of V4-Pro costs {min(shares):.0%} to {max(shares):.0%} of V3.2's FLOPs")
middle = float(np.median(list(cost.flops_shares(pro, v32, 4096).values())))
compare(questions[3], 100 * middle)

# %% [markdown]
# The range is there because the report counts "equivalent FP8 FLOPs" and does not say what an operation in FP4 or bfloat16
# counts. The published 27% lies inside the range. Several countings give a number near it, so this is no verification.
#
# - **Nothing about quality.** An entry of 128 tokens cannot hold what 128 tokens said. Does a model miss it?
#
# ## Quality
#
# A record answers for very small models: two layers of width 64 that differ in their attention alone. Sliding, CSA and HCA
# have a window of 16 tokens. CSA reads the best 8 of its entries of 4 tokens, HCA all of its entries of 16. Each kind learns
# three things, with three seeds and for equally many tokens: the corpus, a book of facts, and to find a **needle**. A needle
# is a digit that was said once with a name and is asked for by that name, some tokens later. Guessing finds one in ten.

# %%
record = minimoe.experiments.read_record("attention-kinds")["runs"]
trained = ("multi-head", "grouped-query", "latent", "CSA", "HCA", "sliding")


def three_seeds(task, kind, score):
    return [score(record[f"{task}-{kind}-{seed}"]) for seed in range(3) if f"{task}-{kind}-{seed}" in record]


def written(values, form):
    if len(values) < 3:
        return ", ".join(f"{value:{form}}" for value in values) + f" ({len(values)} of 3 seeds)" if values else "not run"
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


lines = ["| two layers, float32 | bytes at 128 tokens | bits per byte | facts recalled |", "| --- " * 4 + "|"]
for kind in trained:
    part = minimoe.ModelConfig.from_dict(record[f"needle-{kind}-0"]["config"]["model"]).attention
    text = written(three_seeds("text", kind, lambda run: run["full"]["bits_per_byte"]), ".3f")
    facts = written(three_seeds("facts", kind, lambda run: run["recalled"]), ".1%")
    lines.append(f"| {kind} | {2 * part.cache_bytes(128, 'float32'):,} | {text} | {facts} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# The mean of three seeds, and in brackets their range. A difference inside the ranges is no difference. On text, sliding with its
# 16 tokens is among the others, so text can hardly see a cache here. CSA and HCA also have a third more parameters. A fact is six
# tokens, shorter than every window: facts test what the layers can hold, not what the cache keeps.

# %%
needles = minimoe.experiments.read_record("recall")["runs"]


def found_by(runs, part):
    seeds = {kind: [runs.get(f"{part}-{kind}-{seed}") for seed in range(3)] for kind in trained}
    return {
        kind: [
            {int(far): share for far, share in run.get("found_choosing", run["found"]).items()}
            for run in each if run is not None
        ]
        for kind, each in seeds.items()
    }


short, near, far = found_by(record, "needle"), found_by(needles, "near"), found_by(needles, "far")
steps = [runs[name]["config"]["recipe"]["steps"] for runs, name in ((record, "needle-HCA-0"), (needles, "near-HCA-0"))]
lines = [f"| found 96 tokens back | after {steps[0]:,} steps | after {steps[1]:,} steps |", "| --- " * 3 + "|"]
for kind in trained:
    cells = (written([seed[96] for seed in training[kind]], ".0%") for training in (short, near))
    lines.append(f"| {kind} | " + " | ".join(cells) + " |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# Look at CSA and HCA. After the short training they hardly find a needle. After eleven times as many steps CSA finds nearly all at
# this distance, and HCA most, though one of its entries stands for 16 tokens. Sliding does not move: what it does not keep it
# cannot learn to find.
#
# > **Key observation.** A compressed cache does not hide the needle. It takes longer to learn where to look: a model must
# > first learn to pool, then to read what it pooled.
#
# HCA's gain is steps alone. CSA's is steps and a help that V4 had too: the short training chose 8 entries from the first step,
# the long one read all of them, and its indexer learned to choose while nothing depended on the choice. The numbers on the right
# are of the same models with the best 8 entries alone: at no distance does the choice cost a model more than two points.

# %%
plots.recall_by_distance(near, 126, "Figure 4: needles found after training with 127 tokens; thin lines are seeds")

# %% [markdown]
# What to see: which lines stay high right of the dotted line, where distances are longer than any in training. The kinds that
# keep the keys of every token fall there; latent, which keeps something of every token too, falls less. A guess at the reason:
# keys are turned by positions that no query has met in training, and of a latent key only a small part is turned. CSA reads 8
# entries whatever the distance. Left of the line look just outside the window, at 16 to 48 tokens: CSA finds four needles in
# five there, no more than HCA, where the kinds that keep something of every token find all. One cause may be the rows and not the
# distance: other needles stand between a near one and its question, more densely than in training (19 in the 47 tokens nearest).
#
# ### Thousands of tokens
#
# The same models went on for 800 steps with texts of 4,095 tokens, and needles were asked for from as far back as 4,096.

# %%
for kind, seeds in far.items():
    if seeds:
        shares = ", ".join(f"{at:,}: {np.mean([seed[at] for seed in seeds]):.0%}" for at in (128, 1024, 2048, 3072, 4096))
        print(f"{kind:14} {len(seeds)} of 3 seeds; {shares}")
plots.recall_by_distance({kind: seeds for kind, seeds in far.items() if seeds}, 4094, "Figure 5: needles found, far back")

# %% [markdown]
# What to see: the right end. Latent finds the needle at every distance, with each of three seeds. CSA reads 8 entries of 1,023
# and finds it at every distance in the thousands, with each of three seeds. HCA does so with two of three. Sliding is the
# control: it stays at one in ten. Multi-head and grouped-query attention fall to about half at 4,096, two tokens farther than
# any distance in training, and some of their seeds fall at 3,072 already; the seeds of grouped-query attention lie far apart. A guess at the
# reason: such distances are rare in training. Another guess: the dip of some kinds in the middle comes from a training that
# asks few questions from near, or from those crowded rows.
#
# ## What the other parts bought
#
# V4 changed more than the cache. A second record has `nano`, 300 steps, with one part of V4 at a time:
#
# - *Muon* (arXiv 2502.16982), an optimizer that makes the update of a matrix nearly orthogonal, in place of AdamW;
# - a *hash-routed* first layer: a frozen table of token ids chooses the experts (lesson 02);
# - *hyper-connections*: four residual streams in place of one, which each layer reads, writes and mixes by learnt weights;
# - a *two-token head*, which also learns the token after the next (multi-token prediction);
# - *sqrt-softplus scores* as affinities of the router (lesson 02);
# - a *clamp* at 10 on what an expert multiplies, against spikes;
# - the attention *sink*: a learnt score that lets a head look at nothing.
#
# The runs of a seed see the same batches, so each part is compared with its baseline seed by seed. The sink has a baseline of its
# own: windows of 32 tokens without it.

# %%
runs = minimoe.experiments.read_record("v4-parts")["runs"]
pairs = {
    "Muon": ("plain", "muon"),
    "hash-routed first layer": ("plain", "hash"),
    "hyper-connections": ("plain", "streams"),
    "two-token head": ("plain", "mtp"),
    "sqrt-softplus scores": ("plain", "scores"),
    "clamp at 10": ("plain", "clamp"),
    "sink": ("no-sink", "window"),
}


def seeds_of(way):
    found = [runs.get(f"{way}-{seed}") for seed in range(3)]
    return np.array([run["full"]["bits_per_byte"] for run in found if run is not None])


# %%
bought, shown = {}, []
lines = ["| part | bits per byte bought, seeds 0, 1, 2 | mean | range between seeds | counts? |", "| --- " * 5 + "|"]
for part, (without, with_it) in pairs.items():
    bought[part] = seeds_of(without) - seeds_of(with_it)
    spread = max(np.ptp(seeds_of(without)), np.ptp(seeds_of(with_it)))
    counts_here = len(set(np.sign(bought[part]))) == 1 and abs(bought[part].mean()) > spread
    if counts_here and bought[part].mean() > 0:
        shown.append(part)
    each = ", ".join(f"{value:+.3f}" for value in bought[part])
    lines.append(f"| {part} | {each} | {bought[part].mean():+.3f} | {spread:.3f} | {'yes' if counts_here else 'no'} |")
display(Markdown("\n".join(lines)))

# %%
plots.seeds(bought, "bits per byte less than without the part", "Figure 6: what each part bought in 300 steps")

# %% [markdown]
# What to see: a row far right of zero whose dots lie together. A part *counts* if all seeds agree on its sign and its mean is
# larger than the range between the seeds of one model. That range is the wider of the two models'. A part that does not
# count may still help: three seeds of 300 steps do not show it. Three equal signs alone come by chance one time in four. The
# numbers at the right of the figure are the mean and the standard deviation.
#
# Three cautions. Muon has a learning rate of its own, the best of three; AdamW's was not sought again for this. The two-token
# head is there to write faster, not better: its drafts are counted below. And a start is not the end: four models were
# also trained for 2,000 steps, and the head for 1,000 (`minimoe experiments show mtp`), once as a sparse block like the
# model's own and once as a small dense block.

# %%
drafts = [runs[f"mtp-{seed}"]["drafts"]["temperature 0"]["acceptance_rate"] for seed in range(3)]
print(f"two-token head, 300 steps: {min(drafts):.0%} to {max(drafts):.0%} of its greedy drafts are what the model writes")
heads = minimoe.experiments.read_record("mtp")["runs"]
plain = np.array([heads[f"plain-{seed}"]["full"]["bits_per_byte"] for seed in range(3)])
for way, block in (("mtp", "sparse"), ("dense", "small dense")):
    three = [heads[f"{way}-{seed}"] for seed in range(3)]
    drafts = ", ".join(f"{run['drafts']['temperature 0']['acceptance_rate']:.0%}" for run in three)
    bits = np.array([run["full"]["bits_per_byte"] for run in three])
    gains = ", ".join(f"{gain:+.3f}" for gain in plain - bits)
    spread = max(np.ptp(plain), np.ptp(bits))
    print(f"{block} head, {three[0]['config']['recipe']['steps']:,} steps: {gains} bits per byte bought, range {spread:.3f};")
    print(f"    greedy drafts accepted: {drafts}")

# %% [markdown]
# What to see: the head learns to draft. After 1,000 steps about half of its drafts or more are what the model writes. No
# difference between the two heads is shown, and the small dense one costs less. The text gained too, with every seed.
# But the mean gain is smaller than the range between seeds, so by the rule above it does not count.

# %%
for part in ("hash", "clamp", "scores"):
    both = [s for s in range(3) if f"long-{part}-{s}" in runs and f"long-plain-{s}" in runs]
    gains = [np.subtract(*(runs[f"long-{way}-{s}"]["full"]["bits_per_byte"] for way in ("plain", part))) for s in both]
    print(f"{part}, 2,000 steps: " + ", ".join(f"{gain:+.3f}" for gain in gains) + f" bits per byte bought (seeds {both})")

# %% [markdown]
# ### All parts at once
#
# The package has two models with V4's whole block: compressed attention, hyper-connections, a hash-routed first layer, the
# clamp and the two-token head. Each is compared with a model that differs in the block alone. `v4-small` was trained by the
# recipe of `small`: the same 6,500 batches in the same order, the same optimizer, the same rates. `v4-nano` was trained by
# Muon, as V4 was, so `nano` was trained by Muon again, for as long.

# %%
names = {"nano by Muon": "v4-nano", "v4-nano by Muon": "v4-nano", "small": "small-hour", "v4-small": "v4-small"}
blocks = {name: minimoe.experiments.read_record(record)["runs"][name.split()[0]] for name, record in names.items()}
bits, cached = {}, {}
heads = ("", "parameters", "tokens", "cache at 256 tokens, bytes", "bits per byte", "drafts accepted")
lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
for name, run in blocks.items():
    config = minimoe.ModelConfig.from_dict(run["config"]["model"])
    cached[name] = sum(layer.attention.cache_bytes(256, "float32") for layer in config.layers)
    bits[name] = run["full"]["bits_per_byte"]
    drafts = f"{run['drafts']['temperature 0']['acceptance_rate']:.0%}" if "drafts" in run else ""
    cells = (f"{run['total_params']:,}", f"{run['tokens']:,}", f"{cached[name]:,}", f"{bits[name]:.3f}", drafts)
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
display(Markdown("\n".join(lines)))

# %%
pairs_of_blocks = {"v4-nano by Muon": "nano by Muon", "v4-small": "small"}
for block, plain in pairs_of_blocks.items():
    times = cached[plain] / cached[block]
    print(f"{block}: the cache is {times:.1f} times smaller at 256 tokens; {bits[plain] - bits[block]:+.3f} bits per byte bought")

# %% [markdown]
# What to see: the two rows of a pair. `v4-small` is as good on text as `small`, and its cache is a small part of that of `small`.
# More is not shown: there is one seed of each, seeds of `nano` lie 0.06 apart after 300 steps, and the block has more
# parameters. A context of 256 tokens is also short. Let it write: `minimoe generate v4-small --prompt "In the beginning"`.
#
# ## Verdicts

# %%
middle = {kind: np.mean([seed[96] for seed in seeds]) for kind, seeds in near.items()}
on_text = {kind: np.mean(three_seeds("text", kind, lambda run: run["full"]["bits_per_byte"])) for kind in trained}
plots.verdict(
    claim='"A smaller cache, the same quality."',
    means="Trained for equally many tokens, a model with a compressed cache is as good as one that keeps every token.",
    measured=f"Recorded, two layers, three seeds. Needles found 96 tokens back after {steps[1]:,} steps: "
    + "; ".join(f"{kind} {share:.0%}" for kind, share in middle.items()) + ". Guessing finds 10%. Bits per byte of text, short "
    "training: " + "; ".join(f"{kind} {value:.2f}" for kind, value in on_text.items()) + ". Bought by V4's whole block, one seed: " + "; ".join(f"{b} {bits[p] - bits[b]:+.3f}" for b, p in pairs_of_blocks.items()) + ".",
    says="holds when text is asked, a weak test, since a window of 16 tokens does nearly as well there; for needles too, after a "
    "longer training: entries that stand for several tokens learn later to find them than caches that keep something of every "
    "token, and do not find all at every distance",
    would_change="Needles that several layers must put together, and models of more than two layers.",
)

# %%
plots.verdict(
    claim='"9.5 times less memory."',
    means="One sequence of 1,048,576 tokens: the cache of V4-Pro against the cache of V3.2, each in its published storage.",
    measured=f"Computed from published sizes: {counts['entries, keys and window']:.3f} times; five ways of counting give "
    f"{min(counts.values()):.2f} to {max(counts.values()):.2f}. At 4,096 tokens, everything counted, "
    f"{state_bytes(v32, 4096) / state_bytes(pro, 4096):.2f} times. V4-Pro keeps more below {crossing:,} tokens. "
    "Our own caches weigh what the same formulas say, to the byte.",
    says="holds when the context is very long and the cache alone is meant; the second digit is a matter of counting",
    would_change="The arrays of a server that runs V4-Pro, weighed at a million tokens.",
)

# %%
cheap, short = (cost.flops_shares(pro, v32, n).values() for n in (2**20, 4096))
plots.verdict(
    claim='"27% of the FLOPs" (a token at 1,048,576 tokens, V4-Pro against V3.2).',
    means="Computing the next token costs about a quarter, if operations in fewer bits count less.",
    measured=f"Computed from published sizes under six weightings: {min(cheap):.1%} to {max(cheap):.1%}. "
    f"At 4,096 tokens {min(short):.0%} to {max(short):.0%}.",
    says="holds when the context is very long: a fifth to a third; at short contexts the two cost about the same",
    would_change="The weights of the published count, which the report leaves out.",
)

# %%
plots.verdict(
    claim='"The other parts of DeepSeek-V4 make a better model."',
    means="nano with the part, trained for equally many tokens, has fewer bits per byte than without it.",
    measured="Recorded, three paired seeds, 300 steps. Bits per byte bought, mean: "
    + "; ".join(f"{part} {values.mean():+.3f}" for part, values in bought.items()) + ".",
    says=f"holds when the part is one of: {', '.join(shown)}; what the others bought is smaller than the spread of the seeds",
    would_change="Training to the end: what helps in the first 300 steps need not help in the last.",
)

# %% [markdown]
# ## What to distrust
#
# - **The published models are computed.** The sizes come from their configuration files. Nobody here has run them.
# - **The clock** is one CPU and one layer of width 128. On an accelerator the reading of the cache dominates much earlier.
# - **Quality** is that of models of two layers. Text and facts were trained for a minute. A needle of one token is the
#   easy kind, because no layer has to join a name with its number, and 20 needles among thousands of blanks are a thin haystack.

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
