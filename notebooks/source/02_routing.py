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
# A router is one small matrix. Four decisions surround it. A logit becomes a **score**. Scores become a **choice**. The
# chosen tokens **travel** to their experts. And the experts become different, or they do not. Each decision has a cheap
# wrong version that trains without complaint. This lesson shows the right version beside the wrong one.
#
# | | |
# | --- | --- |
# | **You should know** | notebook 00, or: top-k routing of five tokens by hand; from 01: total and active parameters |
# | **You will be able to** | write a router with a selection bias; say what softmax, sigmoid and sqrt-softplus change; tell five selectors apart, and say why one of them reads the future; write a dispatch and check it; measure what a choice of expert tells beyond the token itself |
# | **Time to study** | 45 minutes for the core, 55 more for its three exercises; *Further* takes another 15 |
# | **Time to run** | three to four minutes on two CPU cores; under 90 seconds with `MINIMOE_FAST=1` |

# %%
import dataclasses
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
from minimoe import ModelConfig, MoEConfig, load_pretrained, plots
from minimoe.claims import ledger
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; no training: shipped models, then clocks;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# Experts are trained to predict text. Nobody tells the router what a domain is. **Do the experts become different, how
# would you know, and what does it cost to send each token to its own experts?** A colourful heat map is no answer: a
# table filled by dice makes colours too. The answer needs a yardstick and controls.
#
# **Predict before you run.** Replace each `None` by a number. The lesson compares later.

# %%
my_guesses = {
    "share of tokens whose experts change if sigmoid replaces softmax (same logits, no bias)": None,
    "time of the plain loop over time of the dropless dispatch (2 of 8 experts, largest batch)": None,
    "bits that one choice of expert tells about the domain (best layer of nano; there are log2 6 = 2.58 to know)": None,
    "the same bits, if the token itself is known already": None,
}
questions = list(my_guesses)


def compare(question, measured):
    """Sets a prediction beside the measurement; without a prediction it waits for one."""
    if my_guesses[question] is None:
        print(f"fill in your prediction at the top and run both cells again: {question}")
    else:
        print(f"{question}: you predicted {my_guesses[question]:g}, measured {measured:.3g}")


# %% [markdown]
# ## Five tokens by hand
#
# The five tokens of notebook 00, E = 4 experts, K = 2 of them for each token, sigmoid scores. A bias has been pushing
# traffic away from expert 0. **Choose** by affinity + bias. **Weigh** by the affinity alone, divided by the sum of the
# chosen two. Do token 0 on paper: the sigmoids of 2, 1, -1 and 0 are about 0.88, 0.73, 0.27 and 0.50.

# %%
E, K = 4, 2
five = np.array([[2.0, 1, -1, 0], [1.5, 0.5, -0.5, 0.5], [1, -1, 2, 0], [2.5, 2, 0, -2], [1, 0, -1, 0.5]], np.float32)
five_bias = np.array([-0.4, 0.0, 0.0, 0.1], np.float32)
affinities = 1 / (1 + np.exp(-five))
chosen, weights_by_hand = [], []
for token, affinity in enumerate(affinities):
    first, second = np.argsort(-(affinity + five_bias), kind="stable")[:K]
    weight = affinity[[first, second]] / (affinity[first] + affinity[second])
    chosen.append((int(first), int(second)))
    weights_by_hand.append(weight)
    print(f"token {token}: affinity {affinity.round(2)}, score {(affinity + five_bias).round(2)}"
          f" -> experts {first} and {second}, weights {weight.round(2)}")
plots.assignments(chosen, E, "Figure 1: five tokens after the bias")

# %% [markdown]
# What to see: without the bias every token chose expert 0 (notebook 00). With it, expert 0 keeps one token.
#
# ## The formula
#
# For token $t$ and expert $i$ with the column $e_i$ of the router's matrix, affinity $s_{t,i}$ and bias $b_i$,
#
# $$s_{t,i}=\phi(u_t\cdot e_i),\qquad S_t=\operatorname{TopK}_i(s_{t,i}+b_i),\qquad
# g_{t,i}=\frac{s_{t,i}}{\sum_{j\in S_t}s_{t,j}}\ (i\in S_t),\qquad h'_t=u_t+\text{Shared}(u_t)+\sum_{i\in S_t}g_{t,i}\,\text{FFN}_i(u_t)$$
#
# (DeepSeek-V3, arXiv 2412.19437, equations 12 to 16). Three functions $\phi$ are in use. The **softmax** over all E
# logits is Switch's (arXiv 2101.03961) and Mixtral's. The **sigmoid** is DeepSeek-V3's (equation 15). The root of the
# softplus, $\sqrt{\log(1+e^x)}$, is DeepSeek-V4's (arXiv 2606.19348, section 2.1). The library keeps them in a table,
# and the choice in a function. They must agree with the loop above.

# %%
from minimoe.moe import AFFINITIES, combine_weights, select_topk

probs = AFFINITIES["sigmoid"](jnp.asarray(five))
experts = select_topk(probs, jnp.asarray(five_bias), top_k=K)
assert experts.tolist() == [list(pair) for pair in chosen]
assert np.allclose(combine_weights(probs, experts), np.array(weights_by_hand), atol=1e-6)
print("experts and weights are those of the loop by hand")

# %% [markdown]
# ## Scores
#
# Figure 2 varies one logit. Three other experts stay at logit 0; only the softmax cares about those.

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
# What to see: softmax and sigmoid are flat at large logits, sqrt-softplus is not. So a router that is already sure gets
# almost no gradient through a softmax or a sigmoid. The V4 report gives no reason for its change and no ablation; that
# the slope is the reason is a guess.
#
# All three functions rise with the logit. So **without a bias they choose the same experts**; only the weights differ.
# A bias is added to the affinities, and the affinities of the three functions have different ranges. So the same bias changes
# more choices under one function than under another.

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
differ = float((sets["softmax"] != sets["sigmoid"]).any(axis=1).mean())
print(f"softmax against sigmoid, no bias: the experts of {differ:.0%} of the tokens differ")
compare(questions[0], differ)

# %% [markdown]
# **Exercise.** The formula of sqrt-softplus overflows as it stands. Write a version that does not. `check` names the
# mistake; `hint("routing.sqrtsoftplus")` helps three times. `minimoe exercises --help` grades a file.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["routing.sqrtsoftplus"]

# %%
def sqrtsoftplus(logits):
    raise NotImplementedError("not written yet: routing.sqrtsoftplus")


check("routing.sqrtsoftplus", sqrtsoftplus);

# %% [markdown]
# ### Divide by the sum, or not?
#
# "Softmax, then top-k" and "top-k, then softmax" are the same function **if** the weights are divided by their sum: the
# normaliser of the large softmax cancels. Without the division softmax-then-top-k is another model, whose weights sum to
# less than 1. Both models are in use. A converted checkpoint must say which one it is.

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
# The division has a trap at **K = 1**. One weight divided by itself is 1, whatever the router says. So the weight is a
# constant, and the router gets no gradient from the task. Switch has K = 1 and does not divide. Here is the gradient of
# a loss with respect to the router's matrix, in all four cases:

# %%
from minimoe.moe import MoELayer

some_tokens = jax.random.normal(jax.random.key(0), (64, 16))


def router_gradient(top_k, normalize):
    layer = MoELayer(MoEConfig(16, 16, 4, top_k, normalize_weights=normalize), rngs=nnx.Rngs(0))
    gradients = nnx.grad(lambda layer: (layer(some_tokens)[0] ** 2).sum())(layer)
    return float(abs(gradients.router.kernel[...]).max())


for top_k in (1, 2):
    print(f"K = {top_k}: largest entry of the router's gradient: divided by the sum {router_gradient(top_k, True):.2e}, "
          f"not divided {router_gradient(top_k, False):.2e}")

# %% [markdown]
# ### The bias chooses; the weights never see it
#
# The bias is set by a controller that moves traffic (lesson 03). A common mistake weighs by affinity + bias too. Then the
# bias that sends tokens away from a busy expert also makes its output count less. The five tokens show it. So does the shipped model
# `nano`, whose biases a controller has found: we change its code, not its weights.

# %%
from minimoe.data import documents, evaluation_documents
from minimoe.moe import Router
from minimoe.training import evaluate

leaked = combine_weights(probs + five_bias, experts)
for token, (pair, right, wrong) in enumerate(zip(chosen, weights_by_hand, np.asarray(leaked), strict=True)):
    print(f"token {token}, experts {pair}: weights {right.round(2)}, with the leak {wrong.round(2)}")
nano, tokenizer, nano_config = load_pretrained("nano")
corpus = documents()
held_out = evaluation_documents([d for d in corpus if d.split == "val"], "quick")


class LeakyRouter(Router):
    """The mistake: weights from affinity + bias."""

    def __call__(self, x, **how):
        routing = super().__call__(x, **how)
        return dataclasses.replace(routing, weights=combine_weights(routing.probs + self.bias[...], routing.experts))


def twin_of(model):
    """A copy with variables of its own: without the tree.map, writing into the copy would write into the model."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda array: array, state))


# %%
leaky = twin_of(nano)
for layer in leaky.layers:
    router = LeakyRouter(layer.ffn.config, rngs=nnx.Rngs(0))
    router.kernel[...], router.bias[...] = layer.ffn.router.kernel[...], layer.ffn.router.bias[...]
    layer.ffn.router = router
biases = np.stack([np.asarray(layer.ffn.router.bias[...]) for layer in nano.layers])  # [layers, E]
own, leaks = evaluate(nano, held_out, tokenizer), evaluate(leaky, held_out, tokenizer)
print(f"nano's biases: {biases.min():+.2f} to {biases.max():+.2f}; bits per byte {own.bits_per_byte:.3f}, "
      f"with the leak {leaks.bits_per_byte:.3f} ({leaks.bits_per_byte - own.bits_per_byte:+.3f})")

# %% [markdown]
# > **Key observation.** The leak changes the weights and raises no error. `nano` hardly suffers (the last number above):
# > this mistake can hide in a model that scores well.
#
# The biases of `nano` are small, and it was trained without the leak. What a model *trained* with the leak would do is
# not measured here.
#
# **Exercise.** Write the choice with the bias, and the weights without it.

# %%
exercises()["routing.topk"]

# %%
def topk(affinities, bias, k):
    raise NotImplementedError("not written yet: routing.topk")


check("routing.topk", topk);

# %% [markdown]
# ## Five ways to choose
#
# Eight tokens, eight experts, **one** matrix of affinities. Expert 0 is popular in it.
#
# - `topk`: the K best of each row.
# - `group_limited`: the K best within the best groups of experts; a group is one machine's worth (DeepSeek-V3, section
#   2.1.2; V4 dropped it). Here there are two groups of four, and a token may use one.
# - `noisy_topk`: top-k of logits with noise, so that the router explores while it trains (Shazeer et al.,
#   arXiv 1701.06538, equations 3 to 5). At evaluation it is `topk`.
# - `hash`: a frozen table by token id; the affinities only weigh (Roller et al., arXiv 2106.04426; DeepSeek-V4's first
#   three layers).
# - `expert_choice`: the best tokens of each **column** (Zhou et al., arXiv 2202.09368, section 3.2).

# %%
from minimoe.moe import make_hash_table, noisy_logits, select_expert_choice, select_group_limited, select_hash

words = "the cat sat on the mat and the".split()
ids = jnp.asarray([words.index(word) for word in words], jnp.int32)
eight = jnp.asarray(np.random.default_rng(5).normal(size=(8, 8)) + np.array([1.2, 0.4, 0, 0, 0, 0, 0, 0]), jnp.float32)
probs, zero = AFFINITIES["sigmoid"](eight), jnp.zeros(8)
noisy = AFFINITIES["sigmoid"](noisy_logits(eight, jnp.zeros_like(eight), jax.random.key(1)))


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
# What to see: a dark cell is a high affinity, a dot is a choice, the number below a column is the expert's load.
# `group_limited` never has dots on both sides of the middle. `hash` sends the three "the" to the same experts.
# `expert_choice` gives every expert the same load, and some tokens many experts, some none (the numbers at the right).

# %%
print("selector        busiest expert   experts per token   the three 'the' go to the same experts")
for name, table in pictures.items():
    load, per_token = table.sum(0), table.sum(1)
    same = all((table[i] == table[0]).all() for i, word in enumerate(words) if word == "the")
    print(f"{name:15} {load.max():8d} {per_token.min():14d} to {per_token.max():d} {'yes' if same else 'no':>18}")

# %% [markdown]
# ### Groups: mask with minus infinity, not with zero
#
# Experts outside the kept groups must lose against *every* score. Sigmoid affinities are positive, so a mask of 0 seems
# to work. Then biases push the scores of busy experts below zero, and the masked experts win.

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
# **Exercise.** Write group-limited routing that is right for scores of any sign.

# %%
exercises()["routing.group_limited"]

# %%
def group_limited(scores, num_groups, top_k_groups, k):
    raise NotImplementedError("not written yet: routing.group_limited")


check("routing.group_limited", group_limited);

# %% [markdown]
# ### Expert choice reads the future
#
# In `expert_choice` tokens compete for places, the later tokens too. So a token's output depends on tokens **after** it.
# A language model that is trained like this has seen hints of the answer. When it generates, the future is missing, and
# the model computes something else. The test belongs in every router's test suite: change the **last** token, compare
# the outputs of the earlier ones. The last row tests `topk` with a *capacity*: each expert has a fixed number of places, and
# an assignment that finds no place is dropped.

# %%
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
# What to see: an orange cell is an earlier token whose output moved. (The figure shows the one batch of 200 in which the
# capacity leaked most; the lines above it count all batches.)
#
# > **Key observation.** Causality is a property of the *router and the dispatch together*: `topk` alone changes nothing
# > earlier (first line above), `topk` with a capacity does (last line).
#
# The reason: all first choices get a slot before any second choice, so a later token can push an earlier token out.
#
# ## Dispatch, built in front of you
#
# The router has chosen. Now $\sum_{i\in S_t} g_{t,i}\,\text{FFN}_i(u_t)$ must be computed for all tokens. Write the T K
# pairs of token and expert (the *assignments*) in a row, **sort** them by expert, multiply each expert's block of rows
# with that expert's weights, and **add** the results back to their tokens. First the sort, on the five tokens:

# %%
flat = np.array(chosen).reshape(-1)  # assignment a belongs to token a // K
order = np.argsort(flat, kind="stable")
print("experts of the ten assignments:     ", flat)
print("assignments sorted by expert:       ", order)
print("their experts, now in blocks:       ", flat[order])
print("the tokens that travel, in that order:", order // K)

# %%
def sorted_dispatch(x, experts, weights, gate_up, down):
    """Sum over a token's experts, each expert on its own rows only.

    x [T, D], experts [T, K], weights [T, K], gate_up [E, D, 2F], down [E, F, D] -> [T, D]
    """
    flat = np.asarray(experts).reshape(-1)  # [T*K]
    order = np.argsort(flat, kind="stable")
    token = order // experts.shape[1]
    ends = np.cumsum(np.bincount(flat, minlength=len(gate_up)))
    blocks = []
    for expert, end in enumerate(ends):
        start = ends[expert - 1] if expert else 0
        rows = x[token[start:end]]  # dispatch: the tokens of this expert
        gate, up = jnp.split(rows @ gate_up[expert], 2, axis=-1)
        blocks.append((jax.nn.silu(gate) * up) @ down[expert])
    weighed = jnp.concatenate(blocks) * weights.reshape(-1)[order][:, None]
    return jnp.zeros_like(x).at[token].add(weighed)  # combine: each token sums its K results


layer = MoELayer(MoEConfig(128, 128, 8, 2), rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (512, 128)) + 0.3 * jax.random.normal(jax.random.key(1), (128,))
theirs, routing = layer(x)
ours = sorted_dispatch(x, routing.experts, routing.weights, layer.experts.gate_up_proj[...], layer.experts.down_proj[...])
assert np.allclose(ours, theirs, atol=1e-5)
print(f"largest difference from the library's layer: {abs(ours - theirs).max():.1e}; outputs reach {abs(theirs).max():.1f}")

# %% [markdown]
# Our version is right, and it cannot be compiled: the sizes of its blocks depend on the data, and XLA wants sizes before
# it sees data. Each dispatch of the library answers that in its own way. T tokens, C slots for each expert:
#
# | | idea | rows multiplied (forward) |
# | --- | --- | --- |
# | `loop` | the definition: each expert on all tokens, weight 0 where not chosen | E T |
# | `dense` | the same in three einsums | E T |
# | `capacity` | C slots for each expert, one batched product; what does not fit is **dropped** (GShard, arXiv 2006.16668) | E C |
# | `ragged` | sort, then groups of unequal size with `jax.lax.ragged_dot` | T K, but E T K on a CPU |
# | `dropless` | sort, slots for the mean load, the rest in a loop: exact | a little above T K |
#
# `with_dispatch(layer, name)` swaps the dispatch under the same weights. First the answers: outputs **and** gradients
# against `loop`.

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
cases = {name: with_dispatch(layer, name) for name in NAMES if name != "capacity"}
cases |= {f"capacity, factor {factor}": make_layer(dispatch="capacity", capacity_factor=factor) for factor in (4.0, 1.25)}
answers = {name: forward_backward(*nnx.split(case), x) for name, case in cases.items()}
(_, (y_loop, _)), gradients_loop = answers["loop"]
gradient_size = max(float(abs(g).max()) for g in jax.tree.leaves(gradients_loop))
print(f"largest output {abs(y_loop).max():.2f}, largest gradient {gradient_size:.1f}; largest difference from the loop:")
for name, ((_, (y, routing)), gradients) in answers.items():
    apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), gradients, gradients_loop)
    print(f"{name:22} output {abs(y - y_loop).max():.1e}   gradients {max(jax.tree.leaves(apart)):.1e}   "
          f"dropped {routing.dropped:.1%} of the assignments")

# %% [markdown]
# The exact ones differ by rounding. A capacity that is too small gives another answer. Factor 4 is E/K, so there is room
# for any load. Factor 1.25 is usual. It is too small here, because all our tokens share a component that makes some
# experts popular.
#
# ### Clocks
#
# Forward and backward, compiled, T tokens of width 128, experts of width 128. The tokens have no common component now, so
# the load is nearly even. The contestants take turns, so that a busy machine slows all alike. The medians are **this
# machine's**.

# %%
from minimoe.bench import alternate

ROUNDS = 3 if FAST else 5


def clock(num_experts, tokens):
    """Milliseconds of one forward and backward pass under each dispatch."""
    x = jax.random.normal(jax.random.key(0), (tokens, 128))
    splits = {name: nnx.split(make_layer(num_experts, name)) for name in NAMES}
    calls = {name: functools.partial(lambda split: jax.block_until_ready(forward_backward(*split, x)), split)
             for name, split in splits.items()}
    timings = alternate(calls, rounds=ROUNDS, warmup=1, pause=0.005)
    return {name: 1000 * timings[name].median for name in NAMES}


sizes = [1, 512] if FAST else [1, 8, 64, 512, 4096]
over_tokens = [clock(8, size) for size in sizes]
counts_of_experts = [8] if FAST else [4, 8, 16, 32]
over_experts = [over_tokens[sizes.index(512)] if e == 8 else clock(e, 512) for e in counts_of_experts]
columns = {name: [row[name] for row in over_tokens] for name in NAMES}
across = {name: [row[name] for row in over_experts] for name in NAMES}
panels = {"tokens at once (2 of 8 experts)": (sizes, columns), "experts (512 tokens, 2 chosen)": (counts_of_experts, across)}
plots.dispatch_clocks(panels, "Figure 5: forward and backward pass of one layer, on this machine")

# %% [markdown]
# What to see: on the right, `loop`, `dense` and `ragged` take longer with more experts; `capacity` and `dropless` grow far
# less.
#
# `dispatch_flops` counts what the chosen pairs need (useful) and what the dispatch multiplies (executed). A backward pass
# is about twice a forward one. If executed work explained the time, the last column would be the same in every row.

# %%
rates = {}
for size in (sizes[0], sizes[-1]):
    load = make_layer().router(jax.random.normal(jax.random.key(0), (size, 128))).load.tolist()
    print(f"T = {size}, loads {[int(count) for count in load]}")
    for name in NAMES:
        flops, milliseconds = dispatch_flops(make_layer(dispatch=name).config, size, load), columns[name][sizes.index(size)]
        rates[size, name] = 3 * flops.executed / milliseconds / 1e6
        print(f"   {name:9} useful {3 * flops.useful / 1e6:8.1f} MFLOPs, executed {3 * flops.executed / 1e6:8.1f} "
              f"({flops.overhead:4.1f}x)   {milliseconds:8.2f} ms   {rates[size, name]:6.1f} GFLOP/s")
    of_size = [rates[size, name] for name in NAMES]
    print(f"   the fastest rate is {max(of_size) / min(of_size):.1f}x the slowest")
loop_over_dropless = columns["loop"][-1] / columns["dropless"][-1]
print(f"T = {sizes[-1]}: the loop takes {loop_over_dropless:.2f}x the time of dropless")
compare(questions[1], loop_over_dropless)

# %% [markdown]
# > **Key observation.** At the largest batch a dispatch that multiplies less is faster. With one token the count of
# > multiplications says less: the rates in the last column are lower and further apart.
#
# A guess at the reason: with one token most of the time goes into reading weights and starting operations.
#
# ## Do the experts become different?
#
# Six kinds of text: two Bibles with the same chapters, plays, novels, Python, mathematics. `nano` has 8 routed experts a
# layer, 2 of them for each token, and was balanced by a bias while it trained. We ask its routers about held-out text.

# %%
domains, load = list(own.per_domain), own.load  # [domains, layers, experts]
plots.experts_by_domain(load, domains, "Figure 6: which experts each domain uses, in the shipped nano")

# %% [markdown]
# What to see: 1.0 is an even split; the Spanish Bible, Python and mathematics have experts of their own. **But** is that
# knowledge about the *domain*, or about the *token*? Spanish has Spanish words. A router that knows only the token would
# paint such a picture too. Here is one layer, token by token:

# %%
from minimoe.data import windows
from minimoe.moe import mutual_information

by_layer = np.asarray(mutual_information(jnp.asarray(load).transpose(1, 0, 2)))  # bits, one number a layer
strongest = int(by_layer.argmax())
choices_of = nnx.jit(lambda model, tokens: jnp.stack([r.experts for r in model(tokens)[1]]))  # [layers, B*L, K]
excerpt = "\n".join(next(d for d in held_out if d.domain == name).text[:90] for name in ("bible_en", "bible_es", "python"))
tokens = [tokenizer.eot_id, *tokenizer.encode(excerpt)]
row = np.zeros((16, nano_config.context_length), np.int32)
row[0, : len(tokens)] = tokens  # what comes later in a row does not matter: the router is causal
experts = np.asarray(choices_of(nano, jnp.asarray(row)))[strongest, : len(tokens)]
pieces = ["<eot>", *(tokenizer.decode([token]) for token in tokens[1:])]
plots.token_experts(pieces, experts, f"Figure 7: layer {strongest}")

# %% [markdown]
# What to see: colour and number are the first expert of a token. Some colours follow the language; some follow the token,
# whatever the language.
#
# ### Bits about the domain, and bits beyond the token
#
# **Mutual information** turns the heat map into one number a layer: the bits that one choice of expert tells about the
# domain, $I(\text{expert};\text{domain})$. The fair question is what the choice tells *to somebody who knows the token*,
# $I(\text{expert};\text{domain}\mid\text{token})$: the information within each token id, averaged over token ids. Many
# token ids are rare, and with few counts chance alone looks like information. So we shuffle the domains among the places of
# the same token id, measure again, and subtract.

# %%
cut = windows(held_out, tokenizer, nano_config.context_length)
rows = len(cut.tokens) // 16 * 16
where = cut.where[:rows].reshape(-1)
token_ids = cut.tokens[:rows].reshape(-1)[where]
kinds = np.repeat(np.asarray(cut.domains)[:rows], cut.tokens.shape[1])[where]
V, rng = tokenizer.vocab_size, np.random.default_rng(0)


def picks_of(model):
    """Experts [layers, tokens, K] that a model chooses on the held-out text."""
    parts = [np.asarray(choices_of(model, jnp.asarray(cut.tokens[i : i + 16]))) for i in range(0, rows, 16)]
    return np.concatenate(parts, axis=1)[:, where]


def bits_given(known, kinds, picks):
    """I(expert; domain | known) in bits, from counts: known [T], kinds [T], picks [T, K]."""
    joint = np.zeros((known.max() + 1, len(domains), picks.max() + 1))
    np.add.at(joint, (known[:, None], kinds[:, None], picks), 1 / picks.size)
    expected = joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)
    ratio = joint * joint.sum((1, 2), keepdims=True) / np.where(expected > 0, expected, 1)
    return float((joint * np.log2(np.where(joint > 0, ratio, 1))).sum())


# %%
def shuffled_within(known, kinds):
    """The same domains, dealt at random among the places where the same thing is known."""
    dealt = np.empty_like(kinds)
    dealt[np.argsort(known, kind="stable")] = kinds[np.lexsort((rng.random(len(kinds)), known))]
    return dealt


def above_chance(known, picks):
    return bits_given(known, kinds, picks) - bits_given(known, shuffled_within(known, kinds), picks)


nothing = np.zeros_like(token_ids)
token_bits = above_chance(nothing, token_ids[:, None])


def alone_and_beyond(picks):
    """For each layer: bits of a choice alone, and bits beyond the token."""
    return [(above_chance(nothing, layer), above_chance(token_ids, layer)) for layer in picks]


# %%
from minimoe.training.loop import init_model

picks = {name: picks_of(load_pretrained(name)[0] if name != "nano" else nano) for name in (("nano",) if FAST else ("nano", "small", "teacher"))}
told = {name: alone_and_beyond(layers) for name, layers in picks.items()}
untrained = [alone_and_beyond(picks_of(init_model(nano_config, seed))) for seed in range(1 if FAST else 3)]
tables = [np.asarray(make_hash_table(jax.random.key(seed), V, 8, 2)) for seed in range(3)]
hashed = np.mean([alone_and_beyond(table[token_ids][None])[0] for table in tables], axis=0)
print(f"to know: log2(6) = {math.log2(6):.3f} bits; the token id alone tells {token_bits:.3f}; {len(token_ids):,} tokens")
for name, layers in told.items():
    print(f"{name:8} by layer: a choice alone", " ".join(f"{a:.3f}" for a, _ in layers),
          "  beyond the token", " ".join(f"{b:.3f}" for _, b in layers))
for seed, layers in enumerate(untrained):
    print(f"untrained nano, seed {seed}: alone", " ".join(f"{a:.3f}" for a, _ in layers),
          "  beyond the token", " ".join(f"{b:.3f}" for _, b in layers))
print(f"hash tables, mean of 3: alone {hashed[0]:.3f}, beyond the token {hashed[1]:.3f}")

# %%
bars = {f"nano, layer {layer}": pair for layer, pair in enumerate(told["nano"])}
bars |= {"untrained nano, mean of layers": tuple(np.mean([np.mean(layers, axis=0) for layers in untrained], axis=0))}
bars |= {"hash table": tuple(hashed)}
untrained_best = max(beyond for layers in untrained for _, beyond in layers)
print(f"beyond the token, the best untrained layer: {untrained_best:.3f}; above it: "
      + ", ".join(f"{name} layers {[i for i, (_, b) in enumerate(layers) if b > untrained_best]}" for name, layers in told.items()))
best_alone, best_beyond = (max(pair[i] for pair in told["nano"]) for i in (0, 1))
compare(questions[2], best_alone)
compare(questions[3], best_beyond)
plots.expert_and_token(bars, token_bits, "Figure 8: bits about the domain in one choice of expert")

# %% [markdown]
# What to see: the dashed line is the token id alone, and no layer of `nano` reaches it. The hatched bars are what the
# choice adds once the token is known.
#
# > **Key observation.** The token id alone tells more about the domain (first line above) than any one choice of expert.
# > So the heat map by itself proves little.
#
# The columns "beyond the token" say what a choice adds. An untrained router adds something too, because attention has
# mixed a little context into its input. The line above the figure lists the layers that add more than the best untrained
# one does. The last layers of the trained models add several times as much (Figure 8); their first layer adds no more than
# an untrained one.
#
# ### Take it away
#
# Information does not prove that the experts *do* different things. Two changes to the finished `nano` test that. First:
# keep all weights and change only the choice. One frozen table gives each token id the two experts that it got most often
# in training text. Another table is random ("by dice" below).

# %%
from minimoe.data import training_data
from minimoe.moe import HashTable

streams = training_data(corpus, tokenizer).streams
training_text = np.concatenate([stream[: 16 * 256].reshape(16, 256) for stream in streams])
usual = [np.asarray(choices_of(nano, jnp.asarray(training_text[i : i + 16]))) for i in range(0, len(training_text), 16)]
usual, E = np.concatenate(usual, axis=1), nano_config.moe.num_experts  # [layers, tokens, K]
counts = np.zeros((nano_config.num_layers, V, E))
for layer, experts in enumerate(usual):
    np.add.at(counts[layer], (training_text.reshape(-1)[:, None], experts), 1)
counts += 1e-3 * counts.mean(axis=1, keepdims=True)  # a token that was never seen: the busiest experts
by_token = np.argsort(-counts, axis=-1, kind="stable")[..., :2]
by_dice = [[make_hash_table(jax.random.key(9 * s + layer), V, E, 2) for layer in range(4)] for s in range(1 if FAST else 3)]


def with_tables(model, tables):
    """A copy whose routers look the experts up by token id; weights still come from the affinities."""
    twin = twin_of(model)
    for layer, table in zip(twin.layers, tables, strict=True):
        router = layer.ffn.router
        router.config = dataclasses.replace(router.config, select="hash", hash_vocab_size=len(table))
        router.table = nnx.data(HashTable(jnp.asarray(table, jnp.int32)))
    return twin


# %%
text_of = {"its own choice": own.bits_per_byte}
text_of["the usual experts of the token id"] = evaluate(with_tables(nano, by_token), held_out, tokenizer).bits_per_byte
for seed, dice in enumerate(by_dice):
    text_of[f"a table filled by dice, seed {seed}"] = evaluate(with_tables(nano, dice), held_out, tokenizer).bits_per_byte
agree = (by_token[:, token_ids][..., None] == picks["nano"][:, :, None, :]).any(-1).mean()
for name, bits in text_of.items():
    print(f"{name:36} {bits:.3f} bits per byte ({bits - own.bits_per_byte:+.3f})")
print(f"the table of usual experts agrees with nano in {agree:.0%} of the choices")

# %% [markdown]
# Second: take one expert away, by a bias that no affinity can beat. If experts belonged to domains, the domain that uses
# an expert most would suffer most. Does it?

# %%
def without_expert(model, layer, expert):
    twin = twin_of(model)
    bias = twin.layers[layer].ffn.router.bias
    bias[...] = bias[...].at[expert].set(-1e9)
    return twin


share = load[:, strongest] / load[:, strongest].sum(-1, keepdims=True) * E  # 1 = an even split
knocked, untouched = range(2 if FAST else E), np.asarray(nano.layers[strongest].ffn.router.bias[...])
damage = []
for expert in knocked:
    less = evaluate(without_expert(nano, strongest, expert), held_out, tokenizer).per_domain
    damage.append([less[name] - own.per_domain[name] for name in domains])
damage = np.array(damage).T  # [domains, experts]
hurt_most = sum(int(damage[:, e].argmax() == share[:, e].argmax()) for e in knocked)
correlation = np.corrcoef(share[:, : len(knocked)].ravel(), damage.ravel())[0, 1]
print(f"layer {strongest}: for {hurt_most} of {len(knocked)} experts the domain that uses the expert most is hurt most; "
      f"correlation of use and damage {correlation:.2f}")
print("mean loss over the domains, by expert:", damage.mean(0).round(3))
assert np.array_equal(untouched, nano.layers[strongest].ffn.router.bias[...])  # each expert left alone, not all before it
plots.damage_by_use(share[:, : len(knocked)], damage, domains, "Figure 9: one expert taken away, each domain's loss")

# %% [markdown]
# What to see: a mark is one expert and one domain. Marks further right (the domain uses the expert more) lie higher (the
# domain loses more without it).
#
# > **Key observation.** Tables of wrong experts hurt much (the lines "dice"), so the experts are different. A single
# > expert matters most to the domain that uses it most (the correlation above).
#
# So in this model the heat map does say who needs whom. On average over the domains one expert costs little (last line); a
# domain that uses it much can lose far more (Figure 9). A guess at the small average: most tokens did not use that expert, and
# for the others the next best one steps in.
#
# ## What to distrust
#
# - **One `nano`.** The interventions are on one trained model. The bits were repeated on three.
# - **Damage is not worth.** A model that had been *trained* with a frozen table could adapt to it. Figure 9 and the tables
#   say what the finished model relies on, not what learnt routing gains.
# - **Clean domains.** Spanish and Python are far apart. Models trained on one kind of text show less.
# - **Figure 4** uses random vectors. It shows that leaks exist, not what they are worth to a trained model.
# - **The clocks.** Two CPU cores and a width of 128. On an accelerator `ragged` is a kernel of its own. The load here is
#   nearly even; when it is not, `dropless` pays for the imbalance, and `capacity` drops.
#
# ## Verdict

# %%
executed = {n: dispatch_flops(make_layer(dispatch=n).config, sizes[-1], load).overhead for n, load in [
    (n, make_layer().router(jax.random.normal(jax.random.key(0), (sizes[-1], 128))).load.tolist()) for n in NAMES]}
faster = loop_over_dropless > 1.2
plots.verdict(
    "The program, too, engages only a fraction of the capacity per step.",
    "Lesson 01 counts the parameters of a token. Here the program is asked: does it multiply with the K chosen experts only?",
    f"2 of 8 experts a token. Executed over useful work at T = {sizes[-1]}: loop {executed['loop']:.1f}x, dropless "
    f"{executed['dropless']:.1f}x. Time: the loop takes {loop_over_dropless:.2f}x that of dropless.",
    "holds when the dispatch really skips the other experts and the batch is large" if faster else "does not show here",
    "A dispatch that skips experts and is no faster than the loop at large batches.",
)

# %%
in_ledger = ledger()["routing"]
by_table = in_ledger.numbers["hash_gain"]
usual_cost = text_of["the usual experts of the token id"] - own.bits_per_byte
dice_cost = min(bits for name, bits in text_of.items() if "dice" in name) - own.bits_per_byte
different = dice_cost > 0.05 and best_beyond > 2 * untrained_best and hurt_most > len(knocked) / 2
plots.verdict(
    "The routing is worth having: experts specialise.",
    "The experts of a trained model do different things, and the router's choice uses more than the token itself.",
    f"A choice tells {best_alone:.2f} bits about the domain at best (the token id alone: {token_bits:.2f}), and "
    f"{best_beyond:.2f} beyond the token. Experts by dice cost {dice_cost:+.2f} bits per byte at least; the token's usual "
    f"experts cost {usual_cost:+.2f}. An expert's best domain is hurt most by its loss for {hurt_most} of {len(knocked)} experts (correlation of use and damage {correlation:.2f}). "
    f"In training (recorded, 0.6 million tokens): a frozen table in the first layer lowers bits per byte by {', '.join(f'{g:.3f}' for g in by_table)}.",
    in_ledger.verdict if different else "does not show here",
    "A model trained with a hash table in every layer that is as good over three paired seeds: learnt routing would gain nothing.",
)

# %% [markdown]
# ## Further: many narrow experts, and one for everybody
#
# DeepSeekMoE (arXiv 2401.06066, section 3.1) cuts every expert into m narrow ones and chooses m times as many. The
# experts' parameters, active parameters and FLOPs stay as they were. The number of different sets that a token can choose
# grows, $\binom{mE}{mK}$, and so does the router. `fine_grained(m)` does that to a config:

# %%
for m in (1, 2, 4, 8):
    fine = nano_config.moe.fine_grained(m)
    active = 3 * fine.d_model * fine.d_expert * fine.top_k
    print(f"nano, m = {m}: {fine.top_k:2d} of {fine.num_experts:2d} experts of width {fine.d_expert:3d}, active {active:,}, "
          f"router {fine.d_model * fine.num_experts:6,}, sets {math.comb(fine.num_experts, fine.top_k):,}")


def sets_in_groups(groups, width, kept, k):
    """Sets of k experts that lie in at most `kept` of the groups: sets that touch exactly j groups, summed over j."""
    touch = lambda j: sum((-1) ** (j - i) * math.comb(j, i) * math.comb(width * i, k) for i in range(1, j + 1))
    return sum(math.comb(groups, j) * touch(j) for j in range(1, kept + 1))


assert sets_in_groups(8, 32, 8, 8) == math.comb(256, 8)  # without a limit
print(f"Mixtral, 2 of 8: {math.comb(8, 2)} sets;  V4-Flash, 6 of 256: {math.comb(256, 6):.1e};  "
      f"V4-Pro, 6 of 384: {math.comb(384, 6):.1e}")
print(f"DeepSeek-V3, 8 of 256: {math.comb(256, 8):.1e} without its group limit, {sets_in_groups(8, 32, 4, 8):.1e} within "
      "4 of its 8 groups of 32")

# %% [markdown]
# A **shared** expert is the other half of that paper's idea (section 3.2). What every token needs is learnt once, by an
# expert that is not routed. `num_shared_experts` adds it. It has no gate, no load and no balance problem. A set that *can*
# be chosen need not be chosen: `nano` has 28 pairs a layer, and this many are in use:

# %%
for layer, experts in enumerate(picks["nano"]):
    pairs = np.unique(np.sort(experts, axis=1), axis=0, return_counts=True)[1]
    print(f"layer {layer}: {len(pairs)} of {math.comb(E, 2)} pairs are used; the commonest takes {pairs.max() / len(experts):.0%}")

# %% [markdown]
# ### An expert-choice model decodes with other experts
#
# Alone in its batch, a token is every expert's best candidate. So an expert-choice layer gives it all experts.

# %%
layer = MoELayer(MoEConfig(16, 16, 4, 2, select="expert_choice", capacity_factor=1.0), rngs=nnx.Rngs(0))
together, alone = layer.router(draws[0]), [layer.router(draws[0, t : t + 1]) for t in range(T)]
print("experts a token got, 16 tokens together:", (together.weights > 0).sum(1).tolist())
print("the same tokens, one at a time:         ", [int((r.weights > 0).sum()) for r in alone])

# %% [markdown]
# ### One more exercise, without a check
#
# Train `nano_config.replace_moe(select="hash", hash_vocab_size=V)` and `nano_config` with three seeds each and the same
# batches. How far behind, or ahead, is a router that never learnt anything? The second verdict has that measurement for the first
# of four layers only, and there the table was ahead.

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
