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
# # 02 · Routing: who decides, who goes where, and what the trip costs
#
# A router is one small matrix. Around it are four decisions: how a logit becomes a **score**, how scores become a
# **choice**, how many experts of which **size** there are to choose from, and how tokens **travel**. Each has a cheap
# wrong version that trains without complaint. This lesson shows each, right and wrong.
#
# | | |
# | --- | --- |
# | **You should know** | notebook 00, or: top-k routing of five tokens by hand; from 01: total and active parameters |
# | **You will be able to** | write a router with a selection bias; say what softmax, sigmoid and sqrt-softplus change; tell five selectors apart on one picture, and why one of them reads the future; measure what an expert knows about the text, against controls; choose a dispatch by its arithmetic and check it against a clock |
# | **Time** | about four minutes on two CPU cores, under 90 seconds with `MINIMOE_FAST=1` (then the router has learnt next to nothing, and its heat map looks it) |

# %%
import math
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import minimoe
from minimoe import ModelConfig, MoEConfig, plots
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 20 if FAST else 300
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; one model of {STEPS} steps, then clocks;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# Experts are trained to predict text, and nobody tells the router what a domain is. **Do the experts specialise, how
# would you know, and what does sending each token to its own experts cost?** A colourful heat map is not an answer: a
# table filled by dice makes colours too. We need a yardstick and controls.
#
# **Predict before you run.** Your guesses come back further down, beside the numbers.

# %%
my_guesses = {
    "share of tokens whose experts change if sigmoid replaces softmax (same logits, no bias)": 0.2,
    "bits that one choice of expert tells about the domain, best layer (there are log2 6 to know)": 0.5,
    "the same for a table filled by dice": 0.0,
    "forward and backward, 2 of 8 experts: time of the plain loop over that of the dropless dispatch": 4.0,
}

# %% [markdown]
# ## Five tokens by hand
#
# Five tokens, E = 4 experts, K = 2 of them each, sigmoid scores, and a bias that has been pushing traffic away from
# expert 0. **Choose** by affinity + bias; **weigh** by the affinity alone, divided by the sum of the chosen two. Do token
# 0 on paper: the sigmoids of 2, 1, -1 and 0 are about 0.88, 0.73, 0.27 and 0.50.

# %%
E, K = 4, 2
five = np.array([[2.0, 1, -1, 0], [1.5, 0.5, -0.5, 1], [1, -1, 2, 0], [2.5, 2, 0, -2], [1, 0, -1, 0.5]], np.float32)
five_bias = np.array([-0.4, 0.0, 0.0, 0.1], np.float32)
affinities = 1 / (1 + np.exp(-five))
chosen = []
for token, affinity in enumerate(affinities):
    first, second = np.argsort(-(affinity + five_bias), kind="stable")[:K]
    weight = affinity[[first, second]] / (affinity[first] + affinity[second])
    chosen.append((int(first), int(second)))
    print(f"token {token}: affinity {affinity.round(2)}, score {(affinity + five_bias).round(2)}"
          f" -> experts {first} and {second}, weights {weight.round(2)}")
plots.assignments(chosen, E, "Figure 1: five tokens after the bias")

# %% [markdown]
# ## The formula
#
# For token $t$ and expert $i$ with the row $e_i$ of the router, affinity $s_{t,i}$ and bias $b_i$,
#
# $$s_{t,i}=\phi(u_t\cdot e_i),\qquad S_t=\operatorname{TopK}_i(s_{t,i}+b_i),\qquad
# g_{t,i}=\frac{s_{t,i}}{\sum_{j\in S_t}s_{t,j}}\ (i\in S_t),\qquad h'_t=u_t+\text{Shared}(u_t)+\sum_{i\in S_t}g_{t,i}\,\text{FFN}_i(u_t)$$
#
# (DeepSeek-V3, arXiv 2412.19437, equations 12 to 16). Three functions $\phi$ are in use: the **softmax** over all E
# logits (Switch, arXiv 2101.03961; Mixtral); the **sigmoid** (DeepSeek-V3, equation 15); and the root of the softplus,
# $\sqrt{\log(1+e^x)}$ (DeepSeek-V4, arXiv 2606.19348, section 2.1). The library has them in a table, and the choice in
# a function; they must agree with the loop above:

# %%
from minimoe.moe import AFFINITIES, combine_weights, select_topk

probs = AFFINITIES["sigmoid"](jnp.asarray(five))
experts = select_topk(probs, jnp.asarray(five_bias), top_k=K)
print("experts", experts.tolist(), "as by hand:", experts.tolist() == [list(pair) for pair in chosen])
print("weights", *np.asarray(combine_weights(probs, experts)).round(2))

# %% [markdown]
# ## Scores
#
# The three functions on one picture, for one logit while three other experts stay at logit 0 (only the softmax cares
# about those).

# %%
at = jnp.linspace(-8, 8, 161)


def one_logit(name):
    """Affinity of the first of four experts, as a function of its logit alone."""
    return lambda logit: AFFINITIES[name](jnp.array([[logit, 0.0, 0.0, 0.0]]))[0, 0]


curves = {name: np.asarray(jax.vmap(one_logit(name))(at)) for name in AFFINITIES}
slopes = {name: np.asarray(jax.vmap(jax.grad(one_logit(name)))(at)) for name in AFFINITIES}
for name in AFFINITIES:
    row = "  ".join(f"{curves[name][i]:.3f} ({slopes[name][i]:.3f})" for i in (0, 40, 80, 120, 160))
    print(f"{name:12} affinity (slope) at -8, -4, 0, 4, 8:  {row}")
plots.score_functions(np.asarray(at), curves, slopes, "Figure 2: from logit to affinity")

# %% [markdown]
# Softmax and sigmoid are flat far above zero: an expert that is already sure learns nothing more about how sure to be.
# Sqrt-softplus keeps growing, like the root of the logit. (The V4 report gives no reason for the change and no
# ablation; that is our reading of the curves.)
#
# All three rise with the logit. So **without a bias they choose the same experts**; only the weights differ. With a
# bias, the same number means different things, because the affinities live on different scales.

# %%
rng = np.random.default_rng(0)
logits = jnp.asarray(rng.normal(size=(4096, 8)), jnp.float32)
no_bias = jnp.zeros(8)
some_bias = jnp.asarray(rng.uniform(-0.1, 0.1, 8), jnp.float32)
sets = {}
for name, phi in AFFINITIES.items():
    plain, moved = (jnp.sort(select_topk(phi(logits), bias, 2), axis=1) for bias in (no_bias, some_bias))
    weight = combine_weights(phi(logits), select_topk(phi(logits), no_bias, 2))[:, 0].mean()
    sets[name] = plain
    print(f"{name:12} mean weight of the best expert {weight:.3f}; a bias within 0.1 of zero changes the experts of "
          f"{(plain != moved).any(axis=1).mean():.0%} of the tokens")
differ = (sets["softmax"] != sets["sigmoid"]).any(axis=1).mean()
print(f"softmax against sigmoid, no bias: experts of {differ:.0%} differ; you guessed {list(my_guesses.values())[0]:.0%}")

# %% [markdown]
# ### Order matters
#
# "Softmax, then top-k" or "top-k, then softmax"? With renormalisation they are the same function, because the
# normaliser of the large softmax cancels. **Without** renormalisation softmax-then-top-k is another model: the weights
# of a token sum to less than 1, the less the flatter the router. Both are in use; a converted checkpoint must know
# which.

# %%
softmax = AFFINITIES["softmax"](logits)
best = select_topk(softmax, no_bias, 2)
renormalised = combine_weights(softmax, best)
over_top_k = jax.nn.softmax(jnp.take_along_axis(logits, best, axis=1), axis=1)
raw = combine_weights(softmax, best, normalize=False)
print(f"renormalised against softmax over the top-k logits: largest difference {abs(renormalised - over_top_k).max():.1e}")
print(f"without renormalising: a token's weights sum to {raw.sum(1).min():.2f} to {raw.sum(1).max():.2f}, "
      f"mean {raw.sum(1).mean():.2f}")

# %% [markdown]
# ### The bias chooses; the weights never see it
#
# The bias is a controller: it moves traffic (lesson 03). Adding the *same* number to every expert's bias moves no
# traffic at all, so it must change nothing. Watch the version in which the bias has leaked into the weights.

# %%
right, leaked, picked = [], [], []
for shift in (0.0, 1.0, 10.0):
    bias = some_bias + shift
    sigmoid = AFFINITIES["sigmoid"](logits)
    picked.append(select_topk(sigmoid, bias, 2))
    right.append(combine_weights(sigmoid, picked[-1]))
    leaked.append(combine_weights(sigmoid + bias, picked[-1]))
    first = [np.asarray(weights[-1][0]).round(3) for weights in (right, leaked)]
    print(f"all biases {shift:+5.1f}: experts changed for {(picked[-1] != picked[0]).any(1).mean():.1%} of tokens; "
          f"first token's weights {first[0]}, with the leak {first[1]}")
print("largest change of the right weights:", float(abs(right[-1] - right[0]).max()))
print("largest change of the leaked ones:  ", float(abs(leaked[-1] - leaked[0]).max()))

# %% [markdown]
# > **Key observation.** With the leak, a controller that was to move tokens also turns all weights towards 1/K. The loss
# > still falls, and nothing raises an error. This is why the exercise below checks for it by name.
#
# ## Five ways to choose
#
# Eight tokens, eight experts, **one** matrix of affinities, in which expert 0 is popular.
#
# - `topk`: the K best of each row.
# - `group_limited`: the same within the best group of experts, one machine's worth (DeepSeek-V3, section 2.1.2; V4
#   dropped it). Here two groups of four, of which a token may use one.
# - `noisy_topk`: top-k of logits with noise, so that the router explores while it trains (Shazeer et al.,
#   arXiv 1701.06538, equations 3 to 5). At evaluation it is `topk`.
# - `hash`: a frozen table by token id; the affinities only weigh (Roller et al., arXiv 2106.04426; DeepSeek-V4's first
#   three layers).
# - `expert_choice`: the best tokens of each **column** (Zhou et al., arXiv 2202.09368, section 3.2).

# %%
from minimoe.moe import make_hash_table, noisy_logits, select_expert_choice, select_group_limited, select_hash

words = "the cat sat on the mat and the".split()
ids = jnp.asarray([words.index(word) for word in words], jnp.int32)
small = jnp.asarray(np.random.default_rng(5).normal(size=(8, 8)) + np.array([1.2, 0.4, 0, 0, 0, 0, 0, 0]), jnp.float32)
probs, zero = AFFINITIES["sigmoid"](small), jnp.zeros(8)
noisy = AFFINITIES["sigmoid"](noisy_logits(small, jnp.zeros_like(small), jax.random.key(1)))


def cells(experts, num_experts=8):
    """Chosen ids [T, K] as a table of True and False [T, E]."""
    return np.asarray(jax.nn.one_hot(experts, num_experts).sum(1) > 0)


pictures = {
    "topk": cells(select_topk(probs, zero, 2)),
    "group_limited": cells(select_group_limited(probs, zero, 2, num_groups=2, top_k_groups=1)),
    "noisy_topk": cells(select_topk(noisy, zero, 2)),
    "hash": cells(select_hash(make_hash_table(jax.random.key(0), len(words), 8, 2), ids)),
    "expert_choice": np.asarray(select_expert_choice(probs, capacity=2)),
}
plots.choices(np.asarray(probs), pictures, words, "Figure 3: five ways to choose from the same affinities")

# %% [markdown]
# Darker is a higher affinity, a dot is a choice; below each column the load, and on the right, where it varies, how many
# experts a token got. Check four things: `topk` overloads the popular expert; `group_limited` never has dots on both
# sides of the middle; `hash` gives the three tokens "the" the same experts, however different their affinities;
# `expert_choice` has perfect columns and uneven rows: some tokens get many experts, some none.

# %%
rows = []
for name, table in pictures.items():
    load, per_token = table.sum(0), table.sum(1)
    same = all((table[i] == table[0]).all() for i, word in enumerate(words) if word == "the")
    rows.append((name, load.max(), per_token.min(), per_token.max(), same))
print("selector        busiest expert   experts per token   the three 'the' go to the same experts")
for name, busiest, least, most, same in rows:
    print(f"{name:15} {busiest:8d} {least:14d} to {most:d} {'yes' if same else 'no':>18}")

# %% [markdown]
# ### Groups: mask with minus infinity, not with zero
#
# Experts outside the kept groups must lose against *every* score. Sigmoid affinities are positive, so a mask of 0 seems
# to work, until biases have pushed the scores of busy experts below zero.

# %%
def masked_with_zero(scores, top_k, num_groups):
    """The bug: one group kept, the others set to 0."""
    grouped = scores.reshape(len(scores), num_groups, -1)
    strength = jax.lax.top_k(grouped, 2)[0].sum(-1)
    keep = jax.nn.one_hot(strength.argmax(-1), num_groups)[:, :, None]
    return jax.lax.top_k((grouped * keep).reshape(scores.shape), top_k)[1]


sigmoid = AFFINITIES["sigmoid"](logits)
for push in (0.0, -0.5, -0.75, -1.0):
    bias = jnp.full(8, push)
    good = select_group_limited(sigmoid, bias, 2, num_groups=2, top_k_groups=1)
    bad = masked_with_zero(sigmoid + bias, 2, num_groups=2)
    outside = ((bad // 4)[:, :, None] != (good // 4)[:, None, :1]).any(axis=(1, 2)).mean()
    print(f"all biases {push:+.2f}: masked with 0, {outside:6.1%} of the tokens leave their group")

# %% [markdown]
# ### Expert choice reads the future
#
# In `expert_choice` tokens compete for places, the later ones too. So a token's output depends on tokens **after** it. A
# language model trained like this has seen hints of the answer; when it generates, the future is missing and it
# computes something else. The test takes a minute and belongs in every router's test suite: change the **last** token,
# compare the outputs of the earlier ones.

# %%
from minimoe.moe import MoELayer

T = 16
ways = {
    "topk": {},
    "group_limited": {"select": "group_limited", "num_groups": 2, "top_k_groups": 1},
    "hash": {"select": "hash", "hash_vocab_size": T},
    "expert_choice": {"select": "expert_choice", "capacity_factor": 1.0},
    "topk, capacity factor 1": {"dispatch": "capacity", "capacity_factor": 1.0},
}
draws = jax.random.normal(jax.random.key(3), (200, T, 16))
other_end = draws.at[:, -1].set(jax.random.normal(jax.random.key(4), (200, 16)))
changes = {}
for name, how in ways.items():
    layer = MoELayer(MoEConfig(16, 16, 4, 2, **({"dispatch": "loop"} | how)), rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(layer)
    run = jax.jit(jax.vmap(lambda x: nnx.merge(graphdef, weights)(x, tokens=jnp.arange(T))[0]))
    moved = np.asarray(abs(run(draws) - run(other_end)).max(-1))
    changes[name] = np.where(moved > 1e-6, moved, 0.0)  # below that is rounding

# %%
for name, moved in changes.items():
    earlier = moved[:, :-1] > 0
    print(f"{name:24} an earlier token's output changed in {earlier.any(1).mean():4.0%} of 200 batches, "
          f"{earlier.sum(1).mean():.2f} tokens a batch")
worst = int(np.argmax((changes["topk, capacity factor 1"][:, :-1] > 0).sum(1)))
shown = {name: moved[worst] for name, moved in changes.items()}
plots.changed_outputs(shown, "Figure 4: one batch; the last token was changed, whose output moved?")

# %% [markdown]
# > **Key observation.** Causality is a property of the *router and the dispatch together*. `topk` is causal; `topk` with
# > a capacity is not, because slots go to all first choices before any second choice, so a later token can push an
# > earlier one out. (Figure 4 shows the batch in which that happened most.)
#
# Decoding makes the other half of the point: alone in its batch, a token is every expert's best candidate.

# %%
layer = MoELayer(MoEConfig(16, 16, 4, 2, select="expert_choice", capacity_factor=1.0), rngs=nnx.Rngs(0))
x = draws[0]
together, alone = layer.router(x), [layer.router(x[t : t + 1]) for t in range(T)]
print("experts a token got, 16 tokens together:", (together.weights > 0).sum(1).tolist())
print("the same tokens, one at a time:         ", [int((r.weights > 0).sum()) for r in alone])

# %% [markdown]
# ## Many narrow experts, and one for everybody
#
# DeepSeekMoE (arXiv 2401.06066, section 3.1) cuts every expert into m narrow ones and chooses m times as many.
# Parameters, active parameters and FLOPs of the experts stay as they were; what grows is the number of different sets
# that a token can choose, $\binom{mE}{mK}$, and the router. `fine_grained(m)` does that to a config:

# %%
nano = ModelConfig.preset("nano")
sets_of = {}
for m in (1, 2, 4, 8):
    fine = nano.moe.fine_grained(m)
    sets_of[f"nano, m = {m}: {fine.top_k} of {fine.num_experts}"] = math.comb(fine.num_experts, fine.top_k)
    active = 3 * fine.d_model * fine.d_expert * fine.top_k
    print(f"m = {m}: {fine.top_k:2d} of {fine.num_experts:2d} experts of width {fine.d_expert:3d}, active {active:,}, "
          f"router {fine.d_model * fine.num_experts:6,}, combinations {list(sets_of.values())[-1]:,}")
published = {"Mixtral": (8, 2), "DeepSeek-V3": (256, 8), "V4-Flash": (256, 6), "V4-Pro": (384, 6)}
sets_of |= {f"{name}, {k} of {e}": math.comb(e, k) for name, (e, k) in published.items()}
plots.combinations(sets_of, "Figure 5: sets of experts that a token can choose")

# %% [markdown]
# A **shared** expert is the other half of that paper's idea (section 3.2): what every token needs is learnt once, by
# an expert that is not routed, and the routed ones need not each learn it again. `num_shared_experts` adds it; it has no
# gate, no load and no balance problem. Combinations are not knowledge, though: that a set *can* be chosen does not say
# that the choice means anything. We come to that below.
#
# ## A board to play on
#
# Four experts, K = 2, sigmoid scores. You own the first token's logits and the bias; the other eight tokens are fixed.

# %%
others = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)) + np.array([1.2, 0, 0, 0]), jnp.float32)


def board(token_logits, bias, title="Figure 6: your token, your bias"):
    scores = AFFINITIES["sigmoid"](jnp.concatenate([jnp.asarray([token_logits], jnp.float32), others]))
    picked = cells(select_topk(scores, jnp.asarray(bias, jnp.float32), 2), num_experts=4)
    return plots.routing_board(np.asarray(scores[0]), np.asarray(bias, np.float32), picked, title)


board([2.0, 1.0, -1.0, 0.0], [-0.3, 0.0, 0.0, 0.0])

# %% [markdown]
# In JupyterLab, VS Code or Colab the next two cells put sliders under it. Tasks: even out the load with four numbers; find a
# bias that moves a token you did not mean to move; make *your* token change its experts without changing its weights'
# order.

# %%
LIVE = any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"))  # or set it yourself


def show_sliders(widgets):
    """Two columns of sliders, and the board as an image that follows them."""
    start, limits = [2.0, 1.0, -1.0, 0.0, -0.3, 0.0, 0.0, 0.0], [4.0] * 4 + [1.0] * 4
    labels = [f"{kind} {expert}" for kind in ("logit", "bias") for expert in range(4)]
    look = {"step": 0.05, "continuous_update": False}
    sliders = [
        widgets.FloatSlider(value, min=-limit, max=limit, description=label, **look)
        for label, value, limit in zip(labels, start, limits, strict=True)
    ]
    image = widgets.Image(format="png", width=750)

    def redraw(change=None):
        numbers = [slider.value for slider in sliders]
        image.value = plots.png_bytes(board(numbers[:4], numbers[4:], "Your token, your bias"))

    for slider in sliders:
        slider.observe(redraw, names="value")
    redraw()
    return widgets.VBox([widgets.HBox([widgets.VBox(sliders[:4]), widgets.VBox(sliders[4:])]), image])


# %%
try:
    import ipywidgets
except ImportError:  # pip install "minimoe[notebooks]" brings it
    ipywidgets = None
if LIVE and ipywidgets is not None:
    display(show_sliders(ipywidgets))
else:
    print("no live front end here, or no ipywidgets: Figure 6 stands still")

# %% [markdown]
# ## The experiment on real text
#
# Six kinds of text: two Bibles with the same chapters, plays, novels, Python, mathematics. We train `nano` (8 routed
# experts a layer, 2 of them a token, sigmoid scores, balanced by a bias) and ask its routers about text they never saw.

# %%
from minimoe.data import documents, evaluation_documents, load_tokenizer, training_data
from minimoe.training import Recipe, RunConfig, evaluate, init_training, train

tokenizer, corpus = load_tokenizer(), documents()
data = training_data(corpus, tokenizer)
validation = [d for d in corpus if d.split == "val"]
run = RunConfig(nano, Recipe.preset("nano", steps=STEPS, log_every=max(1, STEPS // 60)), {}, tokenizer.name)
started = time.monotonic()


def say(record):
    if record["kind"] == "train" and record["step"] % (STEPS // 3) == 0:
        left = (time.monotonic() - started) / record["step"] * (STEPS - record["step"])
        print(f"step {record['step']}/{STEPS}  loss {record['loss']:.2f}  ETA {left:.0f} s", flush=True)


trained = train(run, data, validation, tokenizer, on_record=say)
print(f"{trained.evaluation.bits_per_byte:.3f} bits per byte on {trained.evaluation.num_tokens:,} held-out tokens")

# %%
domains, load = list(trained.evaluation.per_domain), trained.evaluation.load  # [domains, layers, experts]
plots.experts_by_domain(load, domains, "Figure 7: which experts each domain uses, after training")

# %%
plots.load_bars(load.sum(axis=0), "Figure 8: the same choices, all domains together")

# %% [markdown]
# Over all domains the load is near even, the bias sees to that; within a domain it is not. Both at once is what one wants:
# balance for the machine, preference for the model.
#
# Token by token, in the layer with the strongest preferences:

# %%
from minimoe.moe import mutual_information

by_layer = np.asarray(mutual_information(jnp.asarray(load).transpose(1, 0, 2)))  # bits, one number a layer
strongest = int(by_layer.argmax())
route = nnx.jit(lambda model, tokens: model(tokens)[1][strongest].experts)  # [B, L] -> [B*L, K]
excerpt = "\n".join(next(d for d in validation if d.domain == name).text[:90] for name in ("bible_en", "bible_es", "python"))
tokens = [tokenizer.eot_id, *tokenizer.encode(excerpt)]
rows = np.zeros((16, nano.context_length), np.int32)
rows[0, : len(tokens)] = tokens  # what comes later in a row, and other rows, do not matter: the router is causal
experts = np.asarray(route(trained.model, jnp.asarray(rows)))[: len(tokens)]
pieces = ["<eot>", *(tokenizer.decode([token]) for token in tokens[1:])]
plots.token_experts(pieces, experts, f"Figure 9: layer {strongest}")

# %% [markdown]
# What does an expert like? For each expert, the tokens that it gets most above its even share, over text of all domains,
# and how many of the pairs of experts that exist are in use.

# %%
from minimoe.data import windows

cut = windows(evaluation_documents(validation, "quick"), tokenizer, nano.context_length)
batches = [slice(start, start + 16) for start in range(0, len(cut.tokens) - 15, 16)]
picks = np.concatenate([np.asarray(route(trained.model, jnp.asarray(cut.tokens[rows]))) for rows in batches])
where = np.concatenate([cut.where[rows] for rows in batches]).reshape(-1)
tokens, picks = np.concatenate([cut.tokens[rows] for rows in batches]).reshape(-1)[where], picks[where]
pairs = np.unique(np.sort(picks, axis=1), axis=0, return_counts=True)[1]
print(f"layer {strongest}, {len(tokens):,} tokens: {len(pairs)} of {math.comb(nano.moe.num_experts, 2)} pairs are used; "
      f"the commonest takes {pairs.max() / len(tokens):.0%}")

# %%
counts = np.zeros((nano.vocab_size, nano.moe.num_experts))
np.add.at(counts, (tokens[:, None], picks), 1)
often = counts.sum(1) >= 40
share = np.where(often[:, None], counts / np.maximum(counts.sum(1, keepdims=True), 1) * nano.moe.num_experts, 0)
print(f"frequent tokens that each expert gets most above its even share (in brackets: times that share, at most "
      f"{nano.moe.num_experts / nano.moe.top_k:g})")
for expert in range(nano.moe.num_experts):
    top = [t for t in np.argsort(-share[:, expert])[:7] if share[t, expert] > 1]
    print(f"expert {expert}:", "  ".join(f"{tokenizer.decode([int(t)])!r} ({share[t, expert]:.1f})" for t in top) or "-")

# %% [markdown]
# ## How much does an expert know about the domain?
#
# **Mutual information** turns the heat map into one number a layer: the bits that *one* choice of expert tells about
# which of the six domains the token came from. There are at most $\log_2 6$ bits to know. Around it we place
#
# - a **ceiling**: what a reader of a window of W characters can tell. The reader is six byte 5-gram models, one a domain;
#   it guesses the domain whose model needs the fewest bits. The information is that between truth and guess.
# - four **controls**: the router before training; a hash table filled by dice; the trained router's choices,
#   shuffled; and the bare token id.

# %%
from minimoe.data import ByteNgram, Document

LETTERS, WINDOWS = (100_000, 40) if FAST else (500_000, 150)  # characters to learn from; windows of a domain and width
joined = {s: {n: "".join(d.text for d in corpus if (d.domain, d.split) == (n, s)) for n in domains} for s in ("train", "val")}
readers = [ByteNgram([Document(n, "train", n, joined["train"][n][:LETTERS])], order=5) for n in domains]
widths = [1, 2, 4, 8, 16, 32]
rng = np.random.default_rng(0)
confusion = np.zeros((len(widths), len(domains), len(domains)))
for row, width in enumerate(widths):
    for truth, name in enumerate(domains):
        text = joined["val"][name]
        for start in rng.integers(0, len(text) - width, WINDOWS):
            guess = np.argmin([reader.bits(text[start : start + width]) for reader in readers])
            confusion[row, truth, guess] += 1
window_bits = np.asarray(mutual_information(jnp.asarray(confusion, jnp.float32)))
right = confusion.diagonal(axis1=1, axis2=2).mean(1) / WINDOWS
for width, share, bits in zip(widths, right, window_bits, strict=True):
    print(f"{width:2d} characters: the domain is guessed right {share:.1%} of the time; {bits:.2f} bits")

# %% [markdown]
# The controls. A hash table knows nothing, but token ids differ between domains, and so do the experts they are dealt to.

# %%
def bits_of(load):
    return float(mutual_information(jnp.asarray(load, jnp.float32)))


def shuffled(load):
    """The same choices, dealt to tokens at random; domains and experts keep their totals."""
    picks = rng.permutation(np.repeat(np.arange(load.shape[1]), load.sum(0).astype(int)))
    parts = np.split(picks, np.cumsum(load.sum(1).astype(int))[:-1])
    return np.stack([np.bincount(part, minlength=load.shape[1]) for part in parts])


frequency = np.stack([np.bincount(stream, minlength=nano.vocab_size) for stream in data.streams])  # [domains, V]


def hash_load(seed, num_experts=nano.moe.num_experts):
    table = np.asarray(make_hash_table(jax.random.key(seed), nano.vocab_size, num_experts, nano.moe.top_k))
    return sum(frequency @ np.eye(num_experts)[column] for column in table.T)


hashed = [bits_of(hash_load(seed)) for seed in range(20)]
untrained = evaluate(init_training(run)[0], evaluation_documents(validation, "quick"), tokenizer).load
before = [bits_of(untrained[:, layer]) for layer in range(nano.num_layers)]
chance = bits_of(shuffled(load[:, strongest]))
token_bits = bits_of(frequency)

# %%
miller = (len(domains) - 1) * (load.shape[2] - 1) / (2 * math.log(2) * load[:, strongest].sum())
print(f"all there is to know: log2({len(domains)}) = {math.log2(len(domains)):.3f} bits")
print("trained, by layer:  ", by_layer.round(3), f" you guessed {list(my_guesses.values())[1]:.2f} for the best")
print("untrained, by layer:", np.round(before, 3))
print(f"hash table, 20 draws: mean {np.mean(hashed):.3f}, {min(hashed):.3f} to {max(hashed):.3f}; "
      f"you guessed {list(my_guesses.values())[2]:.2f}")
print("hash tables with 8, 32, 128, 512 experts:", [round(bits_of(hash_load(0, e)), 3) for e in (8, 32, 128, 512)])
print(f"token id alone: {token_bits:.3f};  shuffled: {chance:.5f} (chance alone gives about {miller:.5f})")
as_good_as = 2 ** np.interp(by_layer.max(), window_bits, np.log2(widths))
print(f"the best layer's choice tells as much as a window of about {as_good_as:.1f} characters")

# %%
levels = {f"trained, layer {layer}": float(bits) for layer, bits in enumerate(by_layer)}
levels |= {"untrained, best layer": max(before), "hash table": float(np.mean(hashed)), "shuffled": chance}
levels |= {"the token id": token_bits}
plots.information_by_window(
    widths, window_bits.tolist(), levels, math.log2(len(domains)), "Figure 10: bits about the domain"
)

# %% [markdown]
# > **Key observation.** Read the lines from below. *Shuffled* is what the estimate makes of nothing. A *hash table* is
# > above it without having learnt anything, and with more experts it climbs towards what the token id tells: the number
# > depends on E, so only compare routers with equally many experts. The *untrained* router, a random projection of the
# > token and a little context, is a second kind of hash. What training added is the distance from those two. One choice
# > among eight could carry all of the $\log_2 6$ bits; the curve says how short a window tells as much as it does carry.
#
# High information does not prove that the experts *do* different things, nor that they should: an expert for Spanish and
# an expert for the word "the" both raise it. The test would be to take the expert away and look at the loss.
#
# ## Dispatch: five ways, one answer
#
# The router has chosen; now $\sum_{i\in S_t} g_{t,i}\,\text{FFN}_i(u_t)$ must be computed for all tokens at once.
#
# | | idea | rows multiplied (forward) |
# | --- | --- | --- |
# | `loop` | the definition: each expert on all tokens, weight 0 where not chosen | E T |
# | `dense` | the same in three einsums | E T |
# | `capacity` | C slots an expert, one batched product; what does not fit is **dropped** (GShard, arXiv 2006.16668) | E C |
# | `ragged` | sort by expert, groups of unequal size, `jax.lax.ragged_dot` | T K, but E T K on a CPU |
# | `dropless` | sort, slots a little above the mean load, the rest in a loop: exact | a little above T K |
#
# All have one signature, so `with_dispatch(layer, name)` swaps them under the same weights. First the answers: outputs
# **and** gradients against `loop`.

# %%
import functools

from minimoe.moe import dispatch_flops, with_dispatch

NAMES = ("loop", "dense", "capacity", "ragged", "dropless")


@functools.partial(jax.jit, static_argnums=0)
def forward_backward(graphdef, weights, x):
    def total(weights, x):
        y, routing = nnx.merge(graphdef, weights)(x)
        return (y**2).sum(), (y, routing)

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(weights, x)


def make_layer(num_experts=8, dispatch="loop", capacity_factor=1.25):
    config = MoEConfig(128, 128, num_experts, 2, dispatch=dispatch, capacity_factor=capacity_factor)
    return MoELayer(config, rngs=nnx.Rngs(0))


# %%
x = jax.random.normal(jax.random.key(0), (512, 128)) + 0.3 * jax.random.normal(jax.random.key(1), (128,))
cases = {name: make_layer(dispatch=name) for name in NAMES if name != "capacity"}
cases |= {f"capacity, factor {factor}": make_layer(dispatch="capacity", capacity_factor=factor) for factor in (4.0, 1.25)}
answers = {name: forward_backward(*nnx.split(layer), x) for name, layer in cases.items()}
(_, (y_loop, _)), gradients_loop = answers["loop"]
gradient_size = max(float(abs(g).max()) for g in jax.tree.leaves(gradients_loop))
print(f"largest output {abs(y_loop).max():.2f}, largest gradient {gradient_size:.1f}; largest difference from the loop:")
for name, ((_, (y, routing)), gradients) in answers.items():
    apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), gradients, gradients_loop)
    print(f"{name:22} output {abs(y - y_loop).max():.1e}   gradients {max(jax.tree.leaves(apart)):.1e}   "
          f"dropped {routing.dropped:.1%} of the assignments")

# %% [markdown]
# Rounding, but for a capacity that is too small: there the answer is simply another one. Factor 4 is E/K, so there is
# room for any load. 1.25 is usual, and too small here, because all our tokens share a component (real ones do) that
# makes some experts popular: lesson 03.
#
# ### Clocks
#
# Forward and backward, compiled, T tokens of width 128, experts of width 128, 2 of 8; no common component now, so the
# load is nearly even and little is dropped. The contestants take turns, so that a busy machine slows all alike; the
# medians below are **this machine's**.

# %%
from minimoe.bench import alternate

ROUNDS, LIMIT = (3, 0.5) if FAST else (5, 2.0)  # rounds; seconds of one call above which we do not wait


def clock(num_experts, tokens, names):
    """Milliseconds of one forward and backward pass under each dispatch; NaN for those left out."""
    x = jax.random.normal(jax.random.key(0), (tokens, 128))
    calls = {}
    for name in names:
        split = nnx.split(make_layer(num_experts, name))
        calls[name] = lambda split=split: jax.block_until_ready(forward_backward(*split, x))
    timings = alternate(calls, rounds=ROUNDS, warmup=1, pause=0.005)
    return {name: 1000 * timings[name].median if name in timings else math.nan for name in NAMES}


def in_time(names, last, growth):
    """Those that should stay under the limit when the size grows so much; says who is left out."""
    slow = [name for name in names if last[name] * growth > 1000 * LIMIT]  # at worst; small sizes grow more slowly
    for name in slow:
        print(f"{name}: {last[name]:.0f} ms, and {growth:g} times the size would take over {LIMIT:g} s: left out from there")
    return [name for name in names if name not in slow]


# %%
sizes = [1, 512] if FAST else [1, 8, 64, 512, 4096]
over_tokens, names = [], list(NAMES)
for index, size in enumerate(sizes):
    over_tokens.append(clock(8, size, names))
    if size >= 64 and index + 1 < len(sizes):
        names = in_time(names, over_tokens[-1], sizes[index + 1] / size)
counts_of_experts = [4, 8] if FAST else [4, 8, 16, 32]
over_experts = [over_tokens[sizes.index(512)] if e == 8 else clock(e, 512, NAMES) for e in counts_of_experts]
columns = {name: [row[name] for row in over_tokens] for name in NAMES}
across = {name: [row[name] for row in over_experts] for name in NAMES}
panels = {"tokens at once (2 of 8 experts)": (sizes, columns), "experts (512 tokens, 2 chosen)": (counts_of_experts, across)}
plots.dispatch_clocks(panels, "Figure 11: forward and backward pass of one layer, on this machine")

# %% [markdown]
# Where does the time go? `dispatch_flops` counts what the chosen pairs need (useful) and what the dispatch multiplies
# (executed); a backward pass is about twice a forward one. If executed work explained everything, the last column would
# be the same in every row.

# %%
for size in (sizes[0], 512, *([sizes[-1]] if sizes[-1] > 512 else [])):
    x = jax.random.normal(jax.random.key(0), (size, 128))
    load = make_layer().router(x).load.tolist()
    print(f"T = {size}, loads {[int(count) for count in load]}")
    for name in NAMES:
        flops, milliseconds = dispatch_flops(make_layer(dispatch=name).config, size, load), columns[name][sizes.index(size)]
        print(f"   {name:9} useful {3 * flops.useful / 1e6:8.1f} MFLOPs, executed {3 * flops.executed / 1e6:8.1f} "
              f"({flops.overhead:4.1f}x)   {milliseconds:8.2f} ms   {3 * flops.executed / milliseconds / 1e6:6.1f} GFLOP/s")
largest = {name: times[-1] for name, times in columns.items()}
print(f"T = {sizes[-1]}: loop takes {largest['loop'] / largest['dropless']:.2f}x the time of dropless; "
      f"you guessed {list(my_guesses.values())[3]:.1f}x")

# %% [markdown]
# > **Key observation.** The executed work ranks the large batches; for a handful of tokens, the number of separate
# > operations and the bytes of weights read decide, and wasted multiplications are almost free. That is why a library
# > needs more than one dispatch, and why "exact" and "fast" are two different tests.
#
# ## What to distrust
#
# - **The heat map.** One seed, a few minutes of training, and domains as different as Spanish and Python. Models trained on
#   one kind of text show much less.
# - **The ceiling** is a floor. Information computed from guesses is at most what the window holds, and the readers are
#   simple; a better reader would put the curve higher. The router, besides, sees the whole context through attention,
#   not a window. The curve is a yardstick, not a bound.
# - **Mutual information** depends on E, on the domains and on the number of tokens; it is blind to what an expert *does*.
# - **Figure 4** uses random vectors; it shows that leaks exist, not what they are worth to a trained model.
# - **The clocks.** Two CPU cores and a width of 128. On an accelerator `ragged` is a kernel of its own and wins; `loop`
#   with hundreds of experts takes very long to compile. And the load here is nearly even: when it is not, `dropless` pays
#   for the imbalance, while `capacity` drops and looks fast for it.
# - **Counting sets.** Figure 5 counts what could be chosen. How many are *used* stands above Figure 10.
#
# ## Exercises
#
# Three functions to write, each in place of its `raise`. `check` says what is wrong in the idea, not only that a number
# differs; `hint("routing.topk")` says more, three times. The same checks grade a file: `minimoe exercises --help`.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["routing.topk"]

# %%
def topk(affinities, bias, k):
    raise NotImplementedError("not written yet: routing.topk")


check("routing.topk", topk);

# %%
exercises()["routing.sqrtsoftplus"]

# %%
def sqrtsoftplus(logits):
    raise NotImplementedError("not written yet: routing.sqrtsoftplus")


check("routing.sqrtsoftplus", sqrtsoftplus);

# %%
exercises()["routing.group_limited"]

# %%
def group_limited(scores, num_groups, top_k_groups, k):
    raise NotImplementedError("not written yet: routing.group_limited")


check("routing.group_limited", group_limited);

# %% [markdown]
# And without a check: train `nano.replace_moe(select="hash", hash_vocab_size=nano.vocab_size)` for as many steps. How far
# behind is a router that never learnt anything?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
