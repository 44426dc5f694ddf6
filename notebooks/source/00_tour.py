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
# # 00 · The tour: a Mixture of Experts in six figures
#
# The press says that DeepSeek-V4 "engages only a fraction of its capacity per step". This notebook trains a model that
# does the same, small enough for a laptop, and looks inside.
#
# | | |
# | --- | --- |
# | **You should know** | what a transformer block is; Python; a little NumPy |
# | **You will be able to** | route five tokens by hand; say what "total" and "active" parameters are; train a sparse and a dense model side by side; read a routing heat map and a MaxVio curve |
# | **Time** | about five minutes on two CPU cores, under 90 seconds with `MINIMOE_FAST=1` (then the models learn next to nothing, and the last figures look it) |

# %%
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np

import minimoe
from minimoe import ModelConfig, plots
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 40 if FAST else 300
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; {STEPS} training steps for each of two models;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# A dense model multiplies every token with every weight. A sparse one keeps many *experts*, small feed-forward networks,
# and sends each token through a few of them. Both can spend the same arithmetic per token while the sparse one stores
# several times the weights. **Is that worth anything, and do the experts learn different things?**
#
# **Predict before you run.** Write your guesses into the next cell; the notebook comes back to them.

# %%
my_guesses = {
    "share of the parameters that one token uses": 0.30,
    "sparse better than dense at equal tokens, in bits per byte": 0.05,
    "dense model's training speed over the sparse model's": 1.0,
}

# %% [markdown]
# ## Five tokens by hand
#
# A router is one matrix. It gives each token a number for each expert (a *logit*); a sigmoid turns logits into
# *affinities* between 0 and 1. Each token goes to its K = 2 best experts, and their outputs are mixed with *combine
# weights*: the two affinities divided by their sum. Here are five tokens and four experts. Cover the output and route
# the first token yourself.

# %%
logits = np.array(
    [
        [2.0, 1.0, -1.0, 0.0],
        [1.5, 0.5, -0.5, 0.5],
        [1.0, -1.0, 2.0, 0.0],
        [2.5, 2.0, 0.0, -2.0],
        [1.0, 0.0, -1.0, 0.5],
    ]
)
affinities = 1 / (1 + np.exp(-logits))
for token, row in enumerate(affinities):
    first, second = np.argsort(-row, kind="stable")[:2]
    weights = row[[first, second]] / (row[first] + row[second])
    print(f"token {token}: affinities {row.round(2)}  -> experts {first} and {second}, weights {weights.round(2)}")

# %% [markdown]
# Every token chose expert 0. The *load* counts choices, and **MaxVio**, the load of the busiest expert over the mean
# load, less 1, is how unfair it is: 0 when even, E/K - 1 when two experts take everything (1 here). The library's
# functions must agree with the loop above.

# %%
from minimoe.moe import combine_weights, expert_load, max_violation, select_topk

probs = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
experts = select_topk(probs, jnp.zeros(4), top_k=2)
load = expert_load(experts, num_experts=4)
print("experts\n", experts)
print("weights\n", combine_weights(probs, experts).round(2))
print("load", load, " mean", float(load.mean()), " MaxVio", float(max_violation(load)))

# %% [markdown]
# ## The formula
#
# With affinities $s_{t,i}=\sigma(u_t\cdot e_i)$ of token $t$ for expert $i$ and a bias $b_i$ that balances the load,
#
# $$\text{out}_t=\text{Shared}(u_t)+\sum_{i\in S_t} g_{t,i}\,\text{FFN}_i(u_t),\qquad
# S_t=\operatorname{TopK}_i(s_{t,i}+b_i),\qquad g_{t,i}=\frac{s_{t,i}}{\sum_{j\in S_t}s_{t,j}}$$
#
# (DeepSeek-V3, arXiv 2412.19437, equations 12 to 16; the bias: arXiv 2408.15664, algorithm 1). The bias helps to
# *choose*; the weights $g$ never see it. What the bias does to our five tokens:

# %%
from minimoe.moe import bias_update

bias = jnp.zeros(4)
for step in range(30):
    load = expert_load(select_topk(probs, bias, top_k=2), num_experts=4)
    if step % 5 == 0:
        print(f"step {step:2d}  load {load}  MaxVio {float(max_violation(load)):.2f}  bias {bias.round(3)}")
    bias = bias_update(bias, load, rate=0.02)

# %% [markdown]
# > **Key observation.** Overloaded experts are handed a small handicap after every step, starved ones a small bonus,
# > until the load is as even as five tokens allow. No loss and no gradient is involved.
#
# ## A model, and its dense twin
#
# `nano` has 8 routed experts a layer, uses 2 of them, and a shared one that everybody uses. Its dense twin has one
# feed-forward network as wide as the three experts that a token meets: equal arithmetic per token.

# %%
from minimoe.cost import count_params, forward_flops_per_token

sparse_config = ModelConfig.preset("nano")
dense_config = sparse_config.dense_equivalent()
for name, config in {"sparse": sparse_config, "dense": dense_config}.items():
    count, flops = count_params(config), forward_flops_per_token(config)
    print(f"{name:6} {count.total:9,} parameters, {count.active:9,} active ({count.active / count.total:.0%}), "
          f"{flops / 1e6:.2f} MFLOPs a token")
share = count_params(sparse_config).active / count_params(sparse_config).total
print(f"one token uses {share:.0%}; you guessed {my_guesses['share of the parameters that one token uses']:.0%}")

# %% [markdown]
# ## Real text
#
# Six kinds of text: two Bibles with the same chapters, plays, novels, Python, mathematics. Whole documents are held
# out. A byte-level tokenizer with 2,048 entries turns them into integers.

# %%
from minimoe.data import documents, load_tokenizer, training_data

tokenizer = load_tokenizer()
corpus = documents()
data = training_data(corpus, tokenizer)
validation = [d for d in corpus if d.split == "val"]
print(f"{data.num_tokens:,} training tokens in {len(data.domains)} domains: {', '.join(data.domains)}")
sample = next(d for d in validation if d.domain == "shakespeare").text[:60]
print([tokenizer.decode([t]) for t in tokenizer.encode(sample)])

# %% [markdown]
# ## Train both
#
# The same batches in the same order, the same learning rate, the same number of steps.

# %%
from minimoe.training import Recipe, RunConfig, train


def train_one(name, config):
    rate = 0.02 if config.moe else 0.0
    recipe = Recipe.preset("nano", steps=STEPS, router_bias_rate=rate, log_every=max(1, STEPS // 60))
    started = time.monotonic()

    def say(record):
        if record["kind"] == "train" and record["step"] % (STEPS // 4) == 0:
            left = (time.monotonic() - started) / record["step"] * (STEPS - record["step"])
            print(f"{name}: step {record['step']}/{STEPS}  loss {record['loss']:.2f}  ETA {left:.0f} s", flush=True)

    return train(RunConfig(config, recipe, {}, tokenizer.name), data, validation, tokenizer, on_record=say)


sparse = train_one("sparse", sparse_config)
dense = train_one("dense", dense_config)

# %% [markdown]
# ### Figure 1: equal tokens

# %%
runs = {"sparse": sparse.records, "dense": dense.records}
plots.compare_runs(runs, x="tokens", title="Training loss at equal tokens and equal active FLOPs")

# %% [markdown]
# ### Figure 2: equal time
#
# Equal FLOPs are not equal seconds. Sorting tokens by expert, many smaller matrix products and an optimiser that must
# update *all* experts cost time.

# %%
plots.compare_runs(runs, x="seconds", title="The same runs against the clock")

# %%
speed = {name: np.median([r["tokens_per_second"] for r in rs if r["kind"] == "train"]) for name, rs in runs.items()}
gain = dense.evaluation.bits_per_byte - sparse.evaluation.bits_per_byte
print(f"bits per byte: sparse {sparse.evaluation.bits_per_byte:.3f}, dense {dense.evaluation.bits_per_byte:.3f}")
print(f"sparse is better by {gain:+.3f}; you guessed {list(my_guesses.values())[1]:+.3f}")
print(f"dense trains at {speed['dense'] / speed['sparse']:.2f}x the speed; you guessed {list(my_guesses.values())[2]:.2f}x")

# %% [markdown]
# ### Figure 3: where the experts went
#
# Nobody told the router what a domain is. For each layer: how much of a domain's traffic each expert takes, relative to
# an even split.

# %%
plots.experts_by_domain(sparse.evaluation.load, list(sparse.evaluation.per_domain))

# %%
load = sparse.evaluation.load
relative = load / load.sum(axis=-1, keepdims=True) * load.shape[-1]
for layer in range(load.shape[1]):
    domain, expert = np.unravel_index(relative[:, layer].argmax(), relative[:, layer].shape)
    name = list(sparse.evaluation.per_domain)[domain]
    print(f"layer {layer}: strongest preference {name} -> expert {expert}, {relative[domain, layer, expert]:.1f}x its even share")

# %% [markdown]
# ### Figure 4: balance over time

# %%
plots.balance_over_time(sparse.records)

# %% [markdown]
# > **Key observation.** The first steps are the dangerous ones: an expert that is chosen more often learns faster and is
# > chosen even more. The bias catches it. What is left later is mostly the noise of small batches, which hold only eight
# > windows of text.
#
# ### Figure 5: token by token
#
# The first expert of every token in one layer, on text the model never saw.

# %%
def look_at(text, layer):
    ids = [tokenizer.eot_id, *tokenizer.encode(text)]
    _, routing = sparse.model(jnp.asarray([ids], jnp.int32))
    pieces = ["␂", *(tokenizer.decode([i]) for i in ids[1:])]
    return plots.token_experts(pieces, np.asarray(routing[layer].experts), f"layer {layer}")


excerpt = "\n".join(next(d for d in validation if d.domain == name).text[:150] for name in ("bible_es", "python"))
look_at(excerpt, layer=1)

# %% [markdown]
# ### Figure 6: quality by domain
#
# *Bits per byte* does not depend on the tokenizer: the model's surprise in bits over the bytes of the text. The marks
# are a byte 6-gram model of the same text, made by counting: a bar that a neural model should clear, given more minutes
# than this.

# %%
from minimoe.data import evaluation_documents, ngram_bits_per_byte

train_text = [d for d in corpus if d.split == "train"]
six_gram = ngram_bits_per_byte(train_text, evaluation_documents(validation, "quick"), order=6)
results = {"sparse": sparse.evaluation.per_domain, "dense": dense.evaluation.per_domain}
plots.bits_per_byte_by_domain(results, six_gram, "byte 6-gram")

# %% [markdown]
# ### And what it writes

# %%
from minimoe import generate

prompt = jnp.asarray([[tokenizer.eot_id, *tokenizer.encode("In the beginning")]], jnp.int32)
out = generate(sparse.model, prompt, 48, temperature=0.7, top_p=0.95, key=jax.random.key(0))
print(tokenizer.decode(out[0].tolist()))

# %% [markdown]
# ## What to distrust
#
# - **One seed.** The gap between sparse and dense is a single draw here. `minimoe experiments show sparse-vs-dense` prints the
#   recorded comparison over three seeds, at equal tokens and at equal time.
# - **Two million parameters.** At this size the embedding is a good part of the model, and two cores have no use for
#   expert parallelism. Which side wins on the clock is decided by hardware as much as by the idea.
# - **Six clean domains.** Web text has no borders this sharp. That experts follow them here says that routing *can* carry
#   such information, not that experts of large models are "the Python expert" and "the Spanish expert".
# - **Minutes.** Differences at the start of training often shrink, and sometimes change sign, with more of it.
#
# ## Exercises
#
# 1. *(5 min)* Set `top_k` to 1: `ModelConfig.preset("nano").replace_moe(top_k=1)`. Predict total and active parameters
#    first, then check with `count_params`. Which of the two changed?
# 2. *(10 min)* Train with `router_bias_rate=0.0`. What happens to Figure 4, and which row of Figure 3 gives it away?
# 3. *(10 min)* Give the dense model the sparse one's *time* instead of its tokens: scale `STEPS` by the speed ratio
#    printed above. Who wins now? Compare with the record: `minimoe experiments show sparse-vs-dense`.

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
