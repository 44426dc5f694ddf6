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
# # 00 · The tour: what a Mixture of Experts is, and whether it wins
#
# The press says that DeepSeek-V4 "engages only a fraction of its capacity per step". This notebook opens a model that
# does the same and fits a laptop. You route five tokens by hand, look into trained models that come with the package,
# and read *records*: stored results of experiments that were repeated with three random seeds.
#
# | | |
# | --- | --- |
# | **You should know** | what a transformer block is; Python; a little NumPy |
# | **You will be able to** | route five tokens by hand; say what "total" and "active" parameters are; train a sparse model; read a routing heat map and a MaxVio curve; say where a sparse model wins here and where it does not |
# | **Time to study** | 40 minutes |
# | **Time to run** | about two minutes on two CPU cores, under 90 seconds with `MINIMOE_FAST=1` |

# %%
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np

import minimoe
from minimoe import ModelConfig, load_pretrained, plots
from minimoe.errors import UserError
from minimoe.experiments import read_record
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 8 if FAST else 60
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; {STEPS} training steps here;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# A *token* is a piece of text, such as a short word. Inside a model it is a vector of numbers. A transformer block does two
# things with it: attention lets it look at earlier tokens, and a feed-forward network then treats each token by itself.
#
# This course is about the feed-forward network. A *dense* model has one, and multiplies every token with all of its
# weights. A *sparse* model has many small ones, the *experts*, and sends each token through a few of them. Both can
# spend the same arithmetic on a token, while the sparse one stores several times the weights. **Is that worth anything,
# and do the experts learn different things?**
#
# **Predict before you run.** Replace each `None` by a number. The notebook compares later. `nano` is the smaller of the two
# models that this notebook opens. *Bits per byte* say how much a text surprises a model: a guess at random costs 8, and
# the models of this notebook need between 1 and 3. If you have no idea, guess all the same.

# %%
my_guesses = {
    "share of nano's parameters that one token uses (0 to 1)": None,
    "dense minus sparse, bits per byte of text, equal tokens (above 0: sparse is better)": None,
    "dense model's training speed over the sparse model's": None,
}
questions = list(my_guesses)


def compare(question, measured):
    """Sets a prediction beside the measurement; without a prediction it waits for one."""
    if my_guesses[question] is None:
        print(f"fill in your prediction at the top and run both cells again: {question}")
    else:
        print(f"{question}: you predicted {my_guesses[question]:g}, measured {measured:.3g}")


# %% [markdown]
# ## One layer
#
# A layer of experts works in four steps:
#
# 1. The *router*, which is one matrix, gives a token a number for each expert. This number is a *logit*.
# 2. The sigmoid $\sigma(z)=1/(1+e^{-z})$ turns each logit into an *affinity* between 0 and 1.
# 3. The token goes to its K = 2 best experts. K is a choice of the designer.
# 4. The outputs of the two are mixed with *combine weights*: the two affinities divided by their sum.
#
# One more expert, the *shared* one, sees every token.

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
best = affinities[0].argsort()[::-1][:2]
weights = {int(expert): affinities[0, expert] / affinities[0, best].sum() for expert in best}
plots.moe_layer(affinities[0].tolist(), weights, "Figure 1: token 0 in a layer of four experts, two of them chosen")

# %% [markdown]
# What to see: the token meets the router, two of four routed experts, and the shared one. The pale experts cost no
# arithmetic, but they must be stored.
#
# ## Five tokens by hand
#
# The next cell routes five tokens. Cover its output and route the second token yourself: its logits are 1.5, 0.5, -0.5
# and 0.5, and an equal score goes to the expert with the lower number.

# %%
for token, row in enumerate(affinities):
    first, second = np.argsort(-row, kind="stable")[:2]
    weights = row[[first, second]] / (row[first] + row[second])
    print(f"token {token}: affinities {row.round(2)}  -> experts {first} and {second}, weights {weights.round(2)}")

# %% [markdown]
# The *load* of an expert counts the tokens that chose it. Five tokens choose two experts each, so four experts share ten
# choices: the mean load is 2.5. **MaxVio** ("largest violation") says how uneven the load is. It is the load of the busiest
# expert divided by the mean load, less 1. It is 0 when all loads are equal. The worst case is one expert that every token
# chooses. Then MaxVio is E/K - 1, with E experts in the layer. The library's functions must agree with the loop above.

# %%
from minimoe.moe import combine_weights, expert_load, max_violation, select_topk

probs = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
experts = select_topk(probs, jnp.zeros(4), top_k=2)
load = expert_load(experts, num_experts=4)
print("experts", experts.tolist())
print("weights", *np.asarray(combine_weights(probs, experts)).round(2))
print(f"load {load.tolist()}, mean {load.mean():.1f}; every token chose expert 0: MaxVio {max_violation(load):.1f} = 4/2 - 1")

# %% [markdown]
# ## The formula
#
# The same in symbols. Token $t$ enters the layer as a vector $u_t$. Column $i$ of the router's matrix is $e_i$, and
# $\text{FFN}_i$ is expert $i$. The affinity of the token for the expert is $s_{t,i}=\sigma(u_t\cdot e_i)$. $S_t$ is the set of
# chosen experts. One thing is new: a *bias* $b_i$, one number for each expert, which balances the load.
#
# $$\text{out}_t=\text{Shared}(u_t)+\sum_{i\in S_t} g_{t,i}\,\text{FFN}_i(u_t),\qquad
# S_t=\operatorname{TopK}_i(s_{t,i}+b_i),\qquad g_{t,i}=\frac{s_{t,i}}{\sum_{j\in S_t}s_{t,j}}$$
#
# (DeepSeek-V3, arXiv 2412.19437, equations 12 to 16; the bias: arXiv 2408.15664, algorithm 1). The bias helps to
# *choose*. The weights $g$ never see it. After every step the bias of an expert above the mean load falls by a fixed *rate*, and
# that of an expert below it rises by as much. Then the mean of all biases is subtracted, which changes no choice and keeps the
# numbers near 0. Here is that rule on our five tokens:

# %%
from minimoe.moe import bias_update

bias, history = jnp.zeros(4), []
for step in range(200):
    load = expert_load(select_topk(probs, bias, top_k=2), num_experts=4)
    history.append((tuple(np.asarray(load, int).tolist()), tuple(np.asarray(bias).round(5).tolist())))
    if step < 30 and step % 5 == 0:
        print(f"step {step:2d}  load {load.tolist()}  MaxVio {max_violation(load):.2f}  bias {np.asarray(bias).round(2)}")
    bias = bias_update(bias, load, rate=0.02)
start, again = next((i, j) for j in range(200) for i in range(j) if history[i] == history[j])
print(f"from step {start} on, loads and biases repeat every {again - start} steps")
for (load, _) in history[start:again]:
    print("   load", load, f" MaxVio {max(load) / 2.5 - 1:.1f}")

# %% [markdown]
# > **Key observation.** The bias stops expert 0 from taking every token. No training was needed for that, only counting.
# > The bias does not come to rest: on five tokens it ends in a cycle.
#
# Ten choices cannot be shared evenly by four experts, and the rate stays the same however near the loads are. Real training
# has thousands of tokens in a batch, and each changes the load by little.
#
# **Exercise** *(5 min)*. Run the cell again with `rate=0.005`. After how many steps does the cycle begin now? Does a cycle
# remain?
#
# ## A model, and its dense twin
#
# `nano` has 8 routed experts a layer, uses 2 of them for a token, and has a shared one. Its dense twin has one
# feed-forward network, as wide as the three experts that a token meets: equal arithmetic for each token.

# %%
from minimoe.cost import count_params, forward_flops_per_token

sparse_config = ModelConfig.preset("nano")
dense_config = sparse_config.dense_equivalent()
for name, config in {"sparse": sparse_config, "dense": dense_config}.items():
    count, flops = count_params(config), forward_flops_per_token(config)
    print(f"{name:6} {count.total:9,} parameters, {count.active:9,} active ({count.active / count.total:.0%}), "
          f"{flops / 1e6:.2f} MFLOPs a token")
share = count_params(sparse_config).active / count_params(sparse_config).total
compare(questions[0], share)

# %% [markdown]
# **Exercise** *(5 min)*. Set `top_k` to 1: `ModelConfig.preset("nano").replace_moe(top_k=1)`. Predict total and active
# parameters first, then check with `count_params`. Which of the two changed?
#
# ## Real text, and a first training run
#
# Six kinds of text: two Bibles with the same chapters, plays, novels, Python, mathematics. Whole documents are held
# out. A byte-level tokenizer with 2,048 entries turns text into integers. A few steps show that training works. The
# loss is the model's surprise at the next token in *nats*, the unit of the natural logarithm:

# %%
from minimoe.data import documents, load_tokenizer, training_data
from minimoe.training import Recipe, RunConfig, train

tokenizer, corpus = load_tokenizer(), documents()
data = training_data(corpus, tokenizer)
validation = [d for d in corpus if d.split == "val"]
print(f"{data.num_tokens:,} training tokens in {len(data.domains)} domains: {', '.join(data.domains)}")
print([tokenizer.decode([t]) for t in tokenizer.encode(validation[0].text[:40])])
recipe = Recipe.preset("nano", steps=STEPS, router_bias_rate=0.02, log_every=max(1, STEPS // 6))
first_run = train(RunConfig(sparse_config, recipe, {}, tokenizer.name), data, validation, tokenizer)
for record in first_run.records:
    if record["kind"] == "train":
        print(f"step {record['step']:3d}  loss {record['loss']:.2f} nats a token  ({record['seconds']:.0f} s)")

# %% [markdown]
# ## Does sparse beat dense on text?
#
# One run says little: another seed moves the result. So we read a record: three seeds, both models, 1.2 million tokens,
# the same batches in the same order. A third group is dense models that trained for about as long *by the clock* as the sparse
# ones. (`minimoe experiments run sparse-vs-dense` repeats it.) *Bits per byte* is the model's surprise at the whole text,
# in bits, divided by the number of bytes of the text. Lower is better.

# %%
runs = read_record("sparse-vs-dense")["runs"]


def per_seed(name):
    return np.array([runs[f"{name}-{seed}"]["full"]["bits_per_byte"] for seed in range(3)])


groups = {name: [runs[f"{name}-{seed}"]["curve"] for seed in range(3)] for name in ("dense", "sparse")}
equal_tokens = per_seed("dense") - per_seed("sparse")  # above 0: sparse is better
equal_time = per_seed("dense-equal-time") - per_seed("sparse")
print("dense minus sparse, equal tokens, by seed:", equal_tokens.round(3), f"mean {equal_tokens.mean():+.3f}")
print("dense minus sparse, about equal time:     ", equal_time.round(3), f"mean {equal_time.mean():+.3f}")
seconds = {name: [round(runs[f"{name}-{seed}"]["train_seconds"]) for seed in range(3)] for name in ("sparse", "dense-equal-time")}
print("seconds of training:", seconds)
speed = np.median([runs[f"dense-{s}"]["tokens_per_second"] / runs[f"sparse-{s}"]["tokens_per_second"] for s in range(3)])
print(f"dense trains at {speed:.2f}x the speed")
compare(questions[1], equal_tokens.mean())
compare(questions[2], speed)
plots.seeds({name: per_seed(name) for name in ("dense", "sparse", "dense-equal-time")}, title="Figure 2: text, three seeds")

# %% [markdown]
# What to see: a dot is a seed, an upright bar the mean, ± the standard deviation of the three seeds. At equal tokens the
# rows overlap: the seeds do not agree on a winner. At about equal time dense wins with every seed, although its runs were
# a little shorter.

# %%
for name, curves in groups.items():
    train_lines = [[r for r in curve if r["kind"] == "train"] for curve in curves]
    first = np.mean([lines[0]["seconds"] for lines in train_lines])
    later = np.mean([(lines[-1]["seconds"] - lines[0]["seconds"]) / (lines[-1]["step"] - lines[0]["step"]) for lines in train_lines])
    print(f"{name}: step {train_lines[0][0]['step']} is reached after {first:.1f} s; a later step takes {later:.2f} s")
plots.curves_with_spread(groups, x="seconds", title="Figure 3: the same runs against the clock")

# %% [markdown]
# What to see: the lines are means of three seeds, the bands their ranges; dense reaches the end of its tokens first. A line
# ends where the fastest of its three runs ended. Both
# curves begin late, because both programs are compiled before their first step (the lines above give the seconds). Equal
# FLOPs are not equal seconds: a sparse model also sorts tokens, multiplies smaller matrices, and updates *all* its experts.
#
# ### The same, five times as long
#
# The record `longer-text` has 6.1 million tokens, 8 and 32 experts, and dense runs that got as much time as the sparse ones
# need on a CPU. Each difference is between runs of one seed.

# %%
def record_or_none(name):
    try:
        return read_record(name)["runs"]
    except UserError:
        return {}


longer, longer_gaps = record_or_none("longer-text"), {}
for experts in (8, 32):
    for label, dense in (("equal tokens", "dense"), ("equal time", f"dense-as-long-as-{experts}")):
        pairs = [(longer.get(f"{dense}-{s}"), longer.get(f"experts-{experts}-{s}")) for s in range(3)]
        gap = np.array([a["full"]["bits_per_byte"] - b["full"]["bits_per_byte"] for a, b in pairs if a and b])
        if len(gap) == 3:
            longer_gaps[f"{experts} experts at {label}"] = gap
            print(f"dense minus {experts:2d} experts, {label}: {gap.round(3)}  mean {gap.mean():+.3f}")
        else:
            print(f"{experts} experts, {label}: not recorded yet; minimoe experiments run longer-text")

# %% [markdown]
# > **Key observation.** A positive number is a win of the sparse model with that seed. At 6.1 million tokens the sparse
# > models lead at equal tokens: 32 experts with every seed, 8 experts with two seeds and a tie.
#
# At equal time on a CPU the dense model gets more tokens. Then it beats 32 experts with every seed, and against 8
# experts the seeds do not agree.
#
# ## Does sparse beat dense on facts?
#
# A text can be guessed in part. A book of random facts cannot: nothing in it can be inferred, so a model
# holds an entry or it does not. The record `knowledge` compares models that compute equally much for each token.

# %%
knowledge = record_or_none("knowledge")
recalled = {}
for name in ("dense", "experts-4", "experts-16", "experts-64", "dense-2x", "dense-4x", "dense-total"):
    found = [knowledge[f"{name}-{s}"] for s in range(3) if f"{name}-{s}" in knowledge]
    if found:
        recalled[name] = [run["recalled"] for run in found]
        print(f"{name:12} {found[0]['total_params']:9,} parameters, {found[0]['flops_per_token'] / 1e6:.2f} MFLOPs a token, "
              f"recalled {np.mean(recalled[name]):.1%} ({len(found)} of 3 seeds recorded)")
    else:
        print(f"{name:12} is not recorded yet: minimoe experiments run knowledge")
percent = {name: [100 * share for share in shares] for name, shares in recalled.items()}
plots.seeds(percent, quantity="facts recalled, %", title="Figure 4: facts") if recalled else None

# %% [markdown]
# What to see: dense recalls least, 4 experts more, 16 experts more again, with every seed. 16 and 64 experts are near the
# ceiling of this book. The arithmetic for each token is nearly equal (the router grows a
# little). `dense-2x` and `dense-4x` are the small dense model, trained for two and four times as long: it goes on learning, and
# with four times the training it comes near. `dense-total` has about the parameters of `experts-16`, multiplies with all of
# them, and recalls the book too. A step of 16 experts takes less than twice as long as a step of `dense` here, so 16 experts
# win at equal time too (lesson 01).
#
# ## Where the experts went
#
# Now `nano` as it comes with the package, trained on 6.1 million tokens of text. Nobody told its router what a domain
# is. For each layer: how much of a domain's traffic each expert takes, relative to an even split.

# %%
from minimoe.data import evaluation_documents
from minimoe.training import evaluate

nano = load_pretrained("nano")[0]
held_out = evaluation_documents(validation, "quick")
seen = evaluate(nano, held_out, tokenizer)
plots.experts_by_domain(seen.load, list(seen.per_domain), "Figure 5: which experts each domain uses, in the shipped nano")

# %% [markdown]
# What to see: 1.0 is an even split; blue is avoided, red is preferred. The strongest preference of each layer:

# %%
load = seen.load
relative = load / load.sum(axis=-1, keepdims=True) * load.shape[-1]
for layer in range(load.shape[1]):
    domain, expert = np.unravel_index(relative[:, layer].argmax(), relative[:, layer].shape)
    name = list(seen.per_domain)[domain]
    print(f"layer {layer}: strongest preference {name} -> expert {expert}, {relative[domain, layer, expert]:.1f}x its even share")

# %% [markdown]
# Much of that follows from the *tokens*: Spanish has Spanish words. Lesson 02 separates the two. Token by token, on text
# the model never saw:

# %%
def look_at(text, layer, title):
    ids = [tokenizer.eot_id, *tokenizer.encode(text)]
    _, routing = nano(jnp.asarray([ids], jnp.int32))
    pieces = ["<eot>", *(tokenizer.decode([i]) for i in ids[1:])]
    return plots.token_experts(pieces, np.asarray(routing[layer].experts), title)


excerpt = "\n".join(next(d for d in validation if d.domain == name).text[:150] for name in ("bible_es", "python"))
look_at(excerpt, layer=1, title="Figure 6: layer 1")

# %% [markdown]
# What to see: the colour and the small number are the first expert of a token. Spanish words often go to expert 6 and
# Python words often to expert 4, but both use expert 2.
#
# ## Balance over training

# %%
balance = read_record("balance-methods")["runs"]
for name in ("none", "loss-free"):
    late = [np.mean([r["max_violation"] for r in balance[f"{name}-{s}"]["curve"] if r["kind"] == "train"][-20:]) for s in range(3)]
    print(f"{name:10} MaxVio, mean of layers and of the last 20 recorded steps, three seeds: {np.round(late, 2)}")
plots.balance_over_time(balance["loss-free-0"]["curve"], "Figure 7: balance under the bias, one run of the record")

# %% [markdown]
# What to see: in the first 40 steps MaxVio rises, then it falls and stays far lower. The lines above the figure show that
# without the bias it stays high. A guess at what is left: part of it is the noise of small batches. Lesson 03 films such
# a rise step by step.
#
# **Exercise** *(10 min)*. Train with `router_bias_rate=0.0` in the cell that trains, under "Real text", and draw
# `plots.balance_over_time(first_run.records)`. Compare it with the first steps of Figure 7.
#
# ## Quality by domain, and what it writes
#
# `small` is the larger shipped model. The black marks belong to a byte *6-gram*: a model that counts, in the same training
# text, which byte follows the five bytes before it.

# %%
from minimoe.data import ngram_bits_per_byte

small = load_pretrained("small")[0]
train_text = [d for d in corpus if d.split == "train"]
six_gram = ngram_bits_per_byte(train_text, held_out, order=6)
results = {"nano": seen.per_domain, "small": evaluate(small, held_out, tokenizer).per_domain}
below = {name: sum(bits[d] < six_gram[d] for d in bits) for name, bits in results.items()}
print({name: f"better than the 6-gram in {count} of {len(six_gram)} domains" for name, count in below.items()})
plots.bits_per_byte_by_domain(results, six_gram, "byte 6-gram", title="Figure 8: quality by domain")

# %% [markdown]
# What to see: both models lie below the black mark in every domain, and `small` lies below `nano`. Lower is better.
#
# `small` can also write. Each text begins with the words that we give it:

# %%
from minimoe import generate

for start in ("In the beginning", "def main("):
    prompt = jnp.asarray([[tokenizer.eot_id, *tokenizer.encode(start)]], jnp.int32)
    out = generate(small, prompt, 48, temperature=0.7, top_p=0.95, key=jax.random.key(0))
    print(tokenizer.decode(out[0].tolist()), "\n-----")

# %% [markdown]
# ## What to distrust
#
# - **Two million parameters.** At this size the embedding is a good part of the model, and two cores cannot place experts
#   on different devices. Which side wins on the clock depends on the hardware too.
# - **Millions of tokens, not trillions.** A difference early in training can shrink or grow later.
# - **Two machines.** In `longer-text` the dense runs were made on an accelerator and the sparse ones on a CPU. Their bits per
#   byte can be compared, their seconds cannot. So "equal time" follows the ratio of step times, measured on one CPU.
# - **Random facts** need nothing but memory. They show how much faster idle parameters *can* fill, not what text needs.
# - **Six clean domains.** Web text has no such sharp borders. Experts follow the borders here. This does not say that large
#   models have "the Python expert" and "the Spanish expert".
#
# ## Verdict

# %%
count = count_params(sparse_config)
plots.verdict(
    "A dynamic routing mechanism engages only a fraction of the capacity per step.",
    "Active parameters are a fraction of all parameters, for each token.",
    f"{count.active:,} of {count.total:,} parameters, {share:.0%}, by the formula; lesson 01 counts the arrays.",
    "holds",
    "A token whose output changes when an expert that it did not choose changes.",
)

# %%
# against the same dense model trained for twice as long: a step of 16 experts takes less than two of its steps (lesson 01)
facts_won = bool(recalled) and all(a > b for a, b in zip(recalled.get("experts-16", [0]), recalled.get("dense-2x", [1])))
won = {name: int((gap > 0).sum()) for name, gap in longer_gaps.items()}
text_won = bool(won) and min(won.values()) == 3
facts = (f"Facts: dense recalls {np.mean(recalled['dense']):.0%}, 16 experts {np.mean(recalled['experts-16']):.0%}. "
         if {"dense", "experts-16"} <= set(recalled) else "Facts: not recorded yet. ")
text_says = ("32 experts win at equal tokens, and no sparse model at equal time" if won.get("32 experts at equal tokens") == 3
             else "no sparse model wins")
seeds_of_facts = min((len(values) for values in recalled.values()), default=0)
plots.verdict(
    "Sparsity drastically reduces the TFLOPS required.",
    "At equal arithmetic a sparse model is better than a dense one; or it is as good with less.",
    facts + f"Text at 1.2M tokens: dense minus sparse {equal_tokens.mean():+.3f} bits per byte at equal tokens "
    f"({(equal_tokens > 0).sum()} of 3 seeds for sparse), {equal_time.mean():+.3f} at about equal time "
    f"({(equal_time > 0).sum()} of 3). Text at 6.1M tokens, seeds won by the sparse model: "
    + ", ".join(f"{name} {count} of 3" for name, count in won.items()) + f". Seeds of the facts: {seeds_of_facts}.",
    "holds" if text_won else f"holds when facts must be remembered, at equal time too; on text of this size {text_says}"
    if facts_won else "does not show here",
    "Runs of text in which all seeds of the sparse model win at equal time.",
)

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
