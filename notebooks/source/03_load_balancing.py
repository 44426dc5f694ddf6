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
# # 03 · Load balancing: keeping every expert in work
#
# A router learns whom to ask. Nobody tells it to ask everyone. An expert that is asked often learns more, is therefore
# asked more often, and in the end a few experts do all the work while the others, which you also pay for, sit in memory
# untouched. This lesson watches that happen, then takes apart the cures: losses (some of them wrong, on purpose) and a
# controller with one line of code.
#
# | | |
# | --- | --- |
# | **You should know** | what a router, an affinity and top-k are (lesson 02, or the hand calculation of notebook 00) |
# | **You will be able to** | recognise a collapse; compute MaxVio and the balance loss by hand; find the bug in a balance loss; tune the bias controller; say what imbalance costs, and what balance costs |
# | **Time** | about five minutes on two CPU cores, under 90 seconds with `MINIMOE_FAST=1` (then nothing has learnt anything, and the runs show the mechanics only) |

# %%
import os
import platform
import sys
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np

import minimoe
from minimoe import ModelConfig, moe, plots
from minimoe.errors import UserError
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 12 if FAST else 150
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; three runs of {STEPS} steps;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# Left alone, does a router use its experts? If not: can it be made to, without making the model worse?
#
# **Predict before you run.** *MaxVio* is the busiest expert's load over the mean load, minus one: 0 when even, and
# $E/K-1$ at worst, so 3 with 2 of 8 experts. Your guesses come back beside the numbers.

# %%
my_guesses = {
    "worst MaxVio of any layer without balancing": 1.0,
    "dead experts (of 32 in 4 layers) after the last step without balancing": 0,
    "loss-free minus no balancing, bits per byte": -0.02,
    "how many of the seven losses below fail to balance": 3,
}

# %% [markdown]
# ## Five tokens by hand
#
# Four experts, K = 2, affinities that sum to 1. On paper: the load of each expert, MaxVio, and the sum
# $E\sum_e f_e P_e$, where $f_e$ is expert e's share of the ten assignments and $P_e$ its mean affinity.

# %%
affinity = np.array([
    [0.5, 0.3, 0.1, 0.1],
    [0.4, 0.4, 0.1, 0.1],
    [0.5, 0.1, 0.3, 0.1],
    [0.4, 0.3, 0.2, 0.1],
    [0.3, 0.2, 0.1, 0.4],
], dtype=np.float32)  # fmt: skip
E, K = 4, 2
chosen = np.argsort(-affinity, axis=1, kind="stable")[:, :K]
load = np.bincount(chosen.ravel(), minlength=E)
f, P = load / load.sum(), affinity.mean(axis=0)
print("load  ", load, " MaxVio", load.max() / load.mean() - 1)
print("f     ", f, "\nP     ", P.round(3))
print(f"E * sum f P = {E * (f * P).sum():.2f}")
plots.choices_under_bias(affinity, np.zeros(E), K, "Figure 1: five tokens choose two experts each")

# %% [markdown]
# > **Key observation.** Expert 0 is in everybody's choice: it has twice the mean load, so MaxVio is 1. The loss is above
# > 1 because load and affinity lean the same way. Even shares would give $E\cdot E\cdot\frac1E\cdot\frac1E=1$, for any K.
#
# ## The formula
#
# $$L=E\sum_{e=1}^{E} f_e P_e,\qquad f_e=\frac{\text{load}_e}{T K},\qquad
# P_e=\frac1T\sum_{t=1}^{T}\frac{s_{t,e}}{\sum_j s_{t,j}}$$
#
# Switch Transformers (arXiv 2101.03961, equations 4 to 6), for K = 1; dividing by K keeps the balanced value at 1.
# The load is a *count*: it has no gradient. The gradient comes through $P$ alone, $\partial L/\partial p_{t,e}=E f_e/T$:
# every token is told to like each expert less in proportion to how busy that expert is. MaxVio is equation 4 of arXiv
# 2408.15664. The library:

# %%
probs, experts = jnp.asarray(affinity), jnp.asarray(chosen, jnp.int32)
counts = moe.expert_load(experts, E)
print("loss", moe.load_balance_loss(probs, experts), " MaxVio", moe.max_violation(counts))
print("coefficient of variation", moe.load_cv(counts).round(3), " entropy", moe.load_entropy(counts).round(3))
print("gradient for token 0:", jax.grad(moe.load_balance_loss)(probs, experts)[0].round(3))

# %% [markdown]
# The gradient is shifted, because the rows are normalised: it compares each expert with the mean of $f$ over this token's
# own affinities. Descent lowers expert 0 and raises the others, expert 1 too, although it has more than the mean load.
#
# ## A collapse, filmed
#
# Our nano model (E = 8, K = 2, one shared expert, sigmoid affinities) on real text, with every balancing device off. Then
# the same run, same seed and order of batches, with the loss-free controller that is explained further down, at two speeds:
# 0.001, which the papers use, and 0.02, our preset's.

# %%
from minimoe.data import documents, load_tokenizer, training_data
from minimoe.training import Recipe, RunConfig, train

tokenizer, corpus = load_tokenizer(), documents()
data = training_data(corpus, tokenizer)
validation = [d for d in corpus if d.split == "val"]
nano = ModelConfig.preset("nano")
if FAST:
    nano = nano.replace(context_length=64)


def train_with(rate):
    """One run; returns its result and the load of every step, ``[steps, layers, E]``."""
    recipe = Recipe.preset("nano", steps=STEPS, router_bias_rate=rate, log_every=1)
    started, loads = time.monotonic(), []

    def watch(step, metrics):
        loads.append(np.asarray(metrics.load))
        if step % (STEPS // 3) == 0:
            left = (time.monotonic() - started) / step * (STEPS - step)
            print(f"bias rate {rate}: step {step}/{STEPS}  loss {float(metrics.loss):.2f}  ETA {left:.0f} s", flush=True)

    result = train(RunConfig(nano, recipe, {}, tokenizer.name), data, validation, tokenizer, on_step=watch)
    return result, np.stack(loads)


# %%
RATES = {"no balancing": 0.0, "loss-free, 0.001": 0.001, "loss-free, 0.02": 0.02}
runs = {name: train_with(rate) for name, rate in RATES.items()}
loads = {name: steps for name, (_, steps) in runs.items()}

# %%
bare = loads["no balancing"]  # [steps, layers, E]
violation = np.asarray(moe.max_violation(jnp.asarray(bare)))  # [steps, layers]
worst_step, worst_layer = np.unravel_index(violation.argmax(), violation.shape)
frames = np.unique(np.geomspace(1, STEPS, 6).round()).astype(int).tolist()
print(f"worst: layer {worst_layer} at step {worst_step + 1}, MaxVio {violation.max():.2f}; the ceiling is {8 / 2 - 1:.0f}")
plots.load_film(bare[:, worst_layer], frames, f"Figure 2: no balancing, layer {worst_layer}")

# %% [markdown]
# Each column of the image is a step, each row an expert; red is overloaded, blue is starved, and a cross in the frames
# above marks an expert that received *not one* of the batch's tokens. All layers, from the run's own records:

# %%
result, _ = runs["no balancing"]
dead = np.asarray(moe.dead_experts(jnp.asarray(bare)))  # [steps, layers]
print("dead experts by layer after the last step:", dead[-1].astype(int).tolist(), "of 8")
guessed = list(my_guesses.values())
print(f"worst MaxVio {violation.max():.2f}, you guessed {guessed[0]}; dead {int(dead[-1].sum())}, you guessed {guessed[1]}")
plots.balance_over_time(result.records, "Figure 3: no balancing, every layer")

# %% [markdown]
# > **Key observation.** The router starts almost fair: we make its first weights a tenth of the usual size, so that
# > affinities are nearly equal. Within a few dozen steps a layer can reach the ceiling: *the same two experts for every
# > token of the batch*. That happens while the model is still learning which tokens are frequent: all hidden states look
# > alike, and one direction of the router decides for all of them. Later the tokens become different and some experts are
# > found again, but an expert that gets no token gets no gradient either, and has to be found by accident.

# %%
def mean_over_layers(measure):
    return {name: np.asarray(measure(jnp.asarray(steps))).mean(axis=1) for name, steps in loads.items()}


panels = {"MaxVio": mean_over_layers(moe.max_violation), "dead experts": mean_over_layers(moe.dead_experts)}
late = max(1, STEPS // 10)
for name, values in panels["MaxVio"].items():
    wasted = panels["dead experts"][name]
    print(f"{name:17} MaxVio, mean of the last {late} steps: {values[-late:].mean():.2f}; "
          f"dead experts a layer: {wasted.max():.1f} at most, {wasted[-late:].mean():.2f} at the end")
plots.over_steps(panels, "Figure 4: before and after (mean over four layers)")

# %%
plots.load_film(loads["loss-free, 0.02"][:, worst_layer], frames, f"Figure 5: with the controller, layer {worst_layer}")

# %%
bits = {name: result.evaluation.bits_per_byte for name, (result, _) in runs.items()}
for name, value in bits.items():
    print(f"{name:17} {value:.3f} bits per byte on held-out text (quick protocol)")
gap = bits["loss-free, 0.02"] - bits["no balancing"]
print(f"loss-free (0.02) minus none: {gap:+.3f}; you guessed {guessed[2]:+.3f}")

# %% [markdown]
# > **Key observation.** The controller does not prevent the collapse: in the first dozens of steps the logits move faster
# > than any bias of 0.02 a step can follow. It digs the starved experts out again, and 0.001 is too slow even for that in so
# > short a run. Watch the first third of Figures 4 and 5: whoever looks at the last step only sees nothing of it.
#
# One seed and few steps: do not read the third digit (the recorded runs below have seeds). And before you call a gap small or
# large, remember that nano has a shared expert, which works for every token whatever the router does.
#
# ## Seven losses, some of them wrong
#
# Each takes the router logits of N = 2 layers, `[N, T, E]`, and the experts chosen, `[N, T, K]`; affinities are sigmoids,
# as in nano. The T tokens are two sequences, one after the other. Some are published forms, some are bugs that people
# reported in public code. **Find the wrong ones before you go on**: read, or look at the numbers below.

# %%
def share(experts):  # of the assignments, one for each expert
    return jax.nn.one_hot(experts, 8).sum(axis=-2).mean(axis=-2) / experts.shape[-1]

def even(p):  # rows that sum to 1
    return p / p.sum(axis=-1, keepdims=True)

def product(f, p):
    return 8 * (f * p).sum(axis=-1).mean()

def loss_a(logits, experts):
    p = even(jax.nn.sigmoid(logits)).reshape(-1, 8)
    return product(share(experts.reshape(-1, 2)), p.mean(axis=-2))

def loss_b(logits, experts):
    return product(share(experts), even(jax.nn.sigmoid(logits)).mean(axis=-2))

def loss_c(logits, experts):
    return product(share(experts), jax.nn.sigmoid(logits).mean(axis=-2))

# %%
def loss_d(logits, experts):
    p = even(jax.nn.sigmoid(logits)).reshape(2, 2, -1, 8)
    return product(share(experts.reshape(2, 2, -1, 2)), p.mean(axis=-2))

def loss_e(logits, experts):
    p = jax.nn.sigmoid(logits) * jax.nn.one_hot(experts, 8).sum(axis=-2)
    return product(share(experts), even(p).mean(axis=-2))

def loss_f(logits, experts):
    return product(2 * share(experts), even(jax.nn.sigmoid(logits)).mean(axis=-2))

def loss_g(logits, experts):
    return product(share(experts), share(experts))

losses = {"A": loss_a, "B": loss_b, "C": loss_c, "D": loss_d, "E": loss_e, "F": loss_f, "G": loss_g}
my_suspects = {"A", "B"}  # yours

# %% [markdown]
# The routings to try them on, as logits: perfectly even; mildly skewed; collapsed onto two experts in both layers; two
# layers skewed in **opposite** ways; two **sequences** with experts of their own; and, to find the extremes of each loss,
# a router that is very sure while collapsed, one that likes nobody, and a *split* one, where half of the tokens are
# undecided and fall to experts 0 and 1 by a hair.

# %%
T, expert, token = 256, jnp.arange(8), jnp.arange(256)[:, None]
noise = jax.random.normal(jax.random.key(0), (2, T, 8))
ring = jnp.where((expert - token) % 8 < 2, 1.0, 0.0)  # token t takes experts t and t + 1
first, low, early = expert < 2, expert < 4, token < T // 2
others = jnp.where((expert - 2 - 2 * token) % 6 < 2, 1.0, 0.0) * ~first  # pairs among experts 2..7
layers = lambda a, b: jnp.stack([jnp.broadcast_to(jnp.asarray(x, jnp.float32), (T, 8)) for x in (a, b)])
states = {
    "even": layers(3 * ring - 1.5, 3 * ring - 1.5),
    "mild": noise + jnp.linspace(1.0, -1.0, 8),
    "collapsed": 0.5 * noise + layers(4 * first - 2, 4 * first - 2),
    "opposite": 0.5 * noise + layers(2.5 * low - 1.25, 1.25 - 2.5 * low),
    "own experts": 0.5 * noise + layers(*[jnp.where(early, 2.5 * low - 1.25, 1.25 - 2.5 * low)] * 2),
    "sure": layers(*[24 * first - 12] * 2),
    "likes nobody": layers(*[first - 12] * 2),
    "split": layers(*[jnp.where(early, 0.01 * first, 24 * others - 12)] * 2),
}

def pick(logits):
    return jax.lax.top_k(logits, 2)[1]

def violation_of(logits):
    return float(moe.max_violation(jax.vmap(lambda e: moe.expert_load(e, 8))(pick(logits))).mean())

# %%
values = {name: {s: float(loss(x, pick(x))) for s, x in states.items()} for name, loss in losses.items()}
print("MaxVio of each layer alone, mean:", {name: round(violation_of(x), 2) for name, x in states.items()})
print(f"{'':3}{'even':>8}{'lowest':>8} {'at':13}{'highest':>8} {'at':13}")
for name, row in values.items():
    low_at, high_at = min(row, key=row.get), max(row, key=row.get)
    print(f"{name:3}{row['even']:8.2f}{row[low_at]:8.2f} {low_at:13}{row[high_at]:8.2f} {high_at:13}")
plots.loss_ranges(values, "Figure 6: seven losses, eight routings")

# %% [markdown]
# Look at B, which is the textbook loss, on the *split* routing: **below 1, although the load is far from even**. The
# product $fP$ only sees imbalance where load and affinity lean the same way, and half of these tokens are undecided.
# For large E and K = 1 the same construction reaches 3/4 (work it out: a share $a$ of undecided tokens gives
# $a+(1-a)^2$). So a balance loss is a lever and no gauge. Monitor MaxVio.
#
# ### Does it push? Does it push the right way?
#
# The size of the gradient on the logits; then three hundred steps of plain gradient descent on the logits themselves, with
# nothing but the loss in charge. It is a toy: a real router is tied to its inputs and has a task that resists.

# %%
RATE, DESCENT = 100.0, 100 if FAST else 300

@jax.jit(static_argnums=0)
def descend(loss, logits):
    step = lambda x, _: (x - RATE * jax.grad(loss)(x, pick(x)), None)
    return jax.lax.scan(step, logits, None, DESCENT)[0]

starts = ("mild", "collapsed", "opposite")
print("norm of the gradient on the logits:", *starts, sep="\t")
for name, loss in losses.items():
    norms = [float(jnp.linalg.norm(jax.grad(loss)(states[s], pick(states[s])))) for s in starts]
    print(f"{name:35}", *(f"{norm:.1e}" for norm in norms), sep="\t")
ends = {s: {name: descend(loss, states[s]) for name, loss in losses.items()} for s in starts}

# %%
moves = {s: {n: (violation_of(states[s]), violation_of(x)) for n, x in row.items()} for s, row in ends.items()}
for name in losses:
    likes = [float(jax.nn.sigmoid(ends[s][name]).mean()) for s in starts]
    print(f"{name}: mean affinity afterwards", *(f"{like:.2f}" for like in likes))
print("mean affinity before:    ", *(f"{float(jax.nn.sigmoid(states[s]).mean()):.2f}" for s in starts))
plots.before_and_after(moves, title="Figure 7: MaxVio before (ring) and after (dot) following each loss")

# %% [markdown]
# ### The reveal

# %%
reveal = {
    "A": ("wrong", "layers pooled before multiplying: opposite skews cancel, value 1.0 and next to no gradient"),
    "B": ("right", "Switch, for any K: 1 when even; E/K when collapsed and sure"),
    "C": ("wrong", "sigmoids not normalised: not 1 when even, and cheapest when the router likes nobody"),
    "D": ("right", "sequence-wise (DeepSeek-V3, eq. 17-20): also sees sequences with experts of their own"),
    "E": ("wrong", "P over the chosen experts only: blind where it matters, in the collapse"),
    "F": ("right", "but K when even: the scale of Transformers' function; halve its weight"),
    "G": ("wrong", "counts squared: a fine measure, and a gradient of exactly zero"),
}
wrong = {name for name, (verdict, _) in reveal.items() if verdict == "wrong"}
for name, (verdict, why) in reveal.items():
    caught = "  <- you had it" if name in my_suspects & wrong else "  <- not this one" if name in my_suspects - wrong else ""
    print(f"{name}: {verdict}: {why}{caught}")
print(f"{len(wrong)} fail; you guessed {guessed[3]}")

# %% [markdown]
# > **Key observation.** C is the treacherous one: in Figure 7 it "works", at least as well as the right ones. It pays for it by
# > pressing *all* affinities towards zero, and it would be satisfied with any routing once they are there. A and G look
# > fine in a log, because their values are plausible numbers that move. Test a loss where it should be large, look at its
# > gradient, and try layers that lean opposite ways.
#
# ### One routing, six conventions
#
# A weight in a paper means nothing without the value that its loss has at balance. The mildly skewed routing above, with
# softmax affinities as most of these codes have, by each convention (as the docstring of `minimoe/moe/balance.py` states them):

# %%
def b(p, f):  # our B from mean affinity and share
    return 8 * (f.mean(axis=0) @ p.mean(axis=0))

def conventions(logits):
    p, ids = np.asarray(jax.nn.softmax(logits)), np.asarray(pick(logits))
    f = np.eye(8)[ids].sum(axis=-2) / 2  # [N, T, E]: each token's share
    top = np.eye(8)[ids[..., 0]]
    one, by_sequence = np.mean([b(p[n], top[n]) for n in (0, 1)]), np.mean(
        [b(p[n, part], f[n, part]) for n in (0, 1) for part in (slice(0, T // 2), slice(T // 2, T))])
    ours = np.mean([b(p[n], f[n]) for n in (0, 1)])
    return {"ours": ours, "Switch (first choice only)": one, "Transformers": 2 * b(p.reshape(-1, 8), f.reshape(-1, 8)),
            "GShard": one / 8**2, "DeepSeek-V2 and V3": by_sequence, "MegaBlocks": ours}

at_balance, skewed = conventions(states["even"]), conventions(states["mild"])
assert np.isclose(skewed["ours"], np.mean([moe.load_balance_loss(jax.nn.softmax(x), pick(x)) for x in states["mild"]]))
for name, value in skewed.items():
    print(f"{name:27} {value:.4f}, when even {at_balance[name]:.4f}: ratio {value / at_balance[name]:.3f}")

# %% [markdown]
# Two more losses carry the word "balance" or travel with it. The **importance** loss (Shazeer et al. 2017, arXiv
# 1701.06538, equations 6 and 7) evens out the sum of combine weights; the **z-loss** (ST-MoE, arXiv 2202.08906, equation
# 5) keeps logits small and has no opinion on balance. Four tokens, of which three go to expert 0 with small weights:

# %%
few = jnp.array([[0], [0], [0], [1]], jnp.int32)
small = jnp.array([[0.2], [0.2], [0.2], [0.6]])
print("importance loss", moe.importance_loss(small, few, 2).round(6), " MaxVio", moe.max_violation(moe.expert_load(few, 2)))
print("z-loss of the even routing", moe.z_loss(states["even"][0]).round(3), "of the collapsed", moe.z_loss(states["collapsed"][0]).round(3))

# %% [markdown]
# ## The controller: balance without a loss
#
# A loss pulls the router's weights in a direction that has nothing to do with predicting text. Loss-free balancing (Wang
# et al., arXiv 2408.15664, algorithm 1; DeepSeek-V3 and V4 use it) leaves them alone and adds a bias to the *selection*:
#
# $$S_t=\operatorname{TopK}_e\,(s_{t,e}+b_e),\qquad b_e\leftarrow b_e+u\,\operatorname{sign}(\overline{\text{load}}-\text{load}_e)$$
#
# after each step, outside the gradient, from the whole batch's load. The combine weights still come from $s$ without
# $b$. Our five tokens again, $u=0.06$; do the first step by hand (only token 3 changes its mind):

# %%
biases, rate = [jnp.zeros(4)], 0.06
for step in range(5):
    bias = biases[-1]
    ids = moe.select_topk(probs, bias, K)
    counts = moe.expert_load(ids, 4)
    print(f"step {step}  bias {np.asarray(bias).round(3) + 0.0}  load {counts.astype(int)}  MaxVio {moe.max_violation(counts):.1f}")
    biases.append(moe.bias_update(bias, counts, rate))
plots.choices_under_bias(affinity, np.asarray(biases[2]), K, "Figure 8: the same five tokens under the bias of step 2")

# %% [markdown]
# Orange: chosen because of the bias; ringed: given up because of it. Step 2 is as even as five tokens got; then the
# controller overshoots, because every step moves by the full 0.06. (The library also shifts the biases to mean zero,
# which changes no choice.)
#
# ### Three speeds
#
# Only $u$ is to be chosen. A stream of tokens for one layer, with experts of very unequal appeal; three quarters through
# the run the text changes and the appeal is dealt out anew. Below the speeds of the paper's ablation, and what our presets
# do: 0.02 with a cosine down to a twentieth.

# %%
LENGTH = 300 if FAST else 1200
CHANGE = 3 * LENGTH // 4
appeal = jax.random.normal(jax.random.key(1), (8,))
appeal = jnp.stack([appeal, jnp.roll(appeal, 3)])  # the same appeals, dealt to other experts

@jax.jit
def control(rates):
    def step(bias, now):
        n, rate = now
        logits = appeal[jnp.where(n < CHANGE, 0, 1)] + jax.random.normal(jax.random.fold_in(jax.random.key(2), n), (2048, 8))
        load = moe.expert_load(moe.select_topk(jax.nn.sigmoid(logits), bias, 2), 8)
        return moe.bias_update(bias, load, rate), (moe.max_violation(load), bias)
    return jax.lax.scan(step, jnp.zeros(8), (jnp.arange(LENGTH), rates))[1]

cosine = 0.02 * (0.05 + 0.95 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.arange(LENGTH) / LENGTH)))
speeds = {f"u = {u}": jnp.full(LENGTH, u) for u in (0.0001, 0.001, 0.01)} | {"0.02, cosine": cosine}
streams = {name: control(rates) for name, rates in speeds.items()}

# %%
before_change = slice(CHANGE - LENGTH // 10, CHANGE)
for name, (vio, path) in streams.items():
    jitter = jnp.abs(jnp.diff(path[before_change], axis=0)).mean()
    print(f"{name:13} MaxVio before the change {vio[before_change].mean():.3f}, at the end {vio[-LENGTH // 10 :].mean():.3f}; "
          f"bias moves by {jitter:.4f} a step")
traces = {"MaxVio": {name: vio for name, (vio, _) in streams.items()},
          "bias of expert 0": {name: path[:, 0] for name, (_, path) in streams.items()}}
traces = {label: {n: np.asarray(v) for n, v in rows.items()} for label, rows in traces.items()}
plots.over_steps(traces, "Figure 9: the controller at four speeds", {"the text changes": CHANGE}, half_width=5)

# %% [markdown]
# > **Key observation.** The step is always $u$, however large the error: a gap of 0.3 in affinity takes 0.3/u steps to
# > close, and once closed the bias rattles by ±u for ever. Slow speeds are late, fast ones never rest: the trade-off
# > that the paper's ablation reports for 0.0001 and 0.01, and why it settles on 0.001. Those runs are tens of thousands of steps
# > long. Ours are hundreds: Figure 4 shows what 0.001 is worth there. Hence 0.02 with a cosine, fast at first, calm
# > at last; and Figure 9 shows its price, if the text changes when the rate has already gone down.
#
# ## Quality against balance
#
# Is balance worth anything to the *model*? What follows is **recorded**, not computed here: five methods on nano, 300
# steps, several seeds, scored on the whole validation text. `minimoe/records/balance-methods.json`, made by
# `minimoe experiments run balance-methods`, which also lists what each method sets.

# %%
from minimoe.experiments import read_record
from minimoe.training import BALANCE_METHODS

try:
    recorded = read_record("balance-methods")["runs"]
except UserError as missing:
    recorded = {}
    print(f"this section stays empty: {missing}")
groups = {}
for name, run in recorded.items():
    groups.setdefault(name.rpartition("-")[0], []).append(run)
for name, members in groups.items():
    steps = members[0]["config"]["recipe"]["steps"]
    print(f"{name:19} {len(members)} seed(s), {steps} steps, {members[0]['machine']}; sets {BALANCE_METHODS[name]}")


def of_layers(run, name):
    return float(np.mean(run["routing"][name]))

# %% [markdown]
# Beside it the published comparison at a billion parameters: an auxiliary loss of weight 0.001 against loss-free
# balancing (arXiv 2408.15664): perplexity 9.56 and 9.50, MaxVio over the validation set 0.72 and 0.04.

# %%
published = {"aux loss": (0.72, 9.56), "loss-free": (0.04, 9.50)}
points = {
    name: [(of_layers(run, "max_violation_global"), run["full"]["bits_per_byte"]) for run in members]
    for name, members in groups.items()
}
plots.quality_against_balance(points, published, "Figure 10: recorded, nano; and a published pair") if points else None

# %%
scores = {name: [run["full"]["bits_per_byte"] for run in members] for name, members in groups.items()}
if "none" in scores:
    for name in (name for name in scores if name != "none"):
        gap = np.mean(scores[name]) - np.mean(scores["none"])
        spread = max(np.ptp(scores[name]), np.ptp(scores["none"]))
        verdict = f"{'larger' if abs(gap) > spread else 'NOT larger'} than the range between seeds ({spread:.3f})"
        if min(len(scores[name]), len(scores["none"])) < 2:
            verdict = "one seed: whether that is much is not known"
        print(f"{name} - none: {gap:+.3f} bits per byte; {verdict}")
plots.seeds(scores, "bits per byte, whole validation text (lower is better)", "Figure 11: recorded, one dot a seed") if scores else None

# %%
curves, every = {}, 1
for name, members in groups.items():
    logged = [[r for r in run["curve"] if r["kind"] == "train"] for run in members]
    shortest, every = min(map(len, logged)), logged[0][0]["step"]
    curves[name] = np.mean([[np.mean(r["max_violation"]) for r in run[:shortest]] for run in logged], axis=0)
    print(f"{name:19} MaxVio of a batch: {curves[name][: shortest // 5].max():.2f} at its worst early, "
          f"{curves[name][-max(1, shortest // 10):].mean():.2f} at the end")
plots.over_steps({"MaxVio": curves}, "Figure 12: recorded, mean over layers and seeds", every=every) if curves else None

# %% [markdown]
# > **Key observation.** Read Figure 10 with the dots in mind: where the seeds of two methods overlap, their order is
# > luck. Balance itself is unambiguous; its effect on quality at this size is not bound to be.
#
# ## Whose balance: the batch's or each sequence's?
#
# A Python file and a psalm need different experts, if experts are to be good for something. A loss over the whole batch
# allows that: one takes these, the other those. A loss inside each **sequence** forbids it. Two domains, a sequence of
# each, and a perfectly specialised router:

# %%
domain = jnp.repeat(jnp.arange(2), 4)  # eight tokens, two sequences
own = jnp.where(domain[:, None] == 0, jnp.array([0, 1]), jnp.array([2, 3])).astype(jnp.int32)
mixed = jnp.tile(jnp.array([[0, 1], [2, 3]], jnp.int32), (4, 1))
for name, ids in (("specialised", own), ("unspecialised", mixed)):
    p = jax.nn.one_hot(ids, 4).sum(axis=1) / 2
    whole, parts = moe.load_balance_loss(p, ids), moe.sequence_balance_loss(p, ids, domain, 2)
    by_domain = jnp.stack([moe.expert_load(ids, 4, domain == d) for d in (0, 1)])
    print(f"{name:14} batch {whole:.1f}  sequence-wise {parts:.1f}  mutual information {moe.mutual_information(by_domain):.1f} bit")

# %% [markdown]
# The mutual information of domain and expert says how much one choice of expert tells about the text: 1 bit is
# everything that there is to know about two domains. Now let each loss drive the *own experts* routing from above:

# %%
segments = jnp.repeat(jnp.arange(2), T // 2)
whole_batch = lambda logits, ids: moe.load_balance_loss(jax.nn.sigmoid(logits), ids)
by_sequence = lambda logits, ids: moe.sequence_balance_loss(jax.nn.sigmoid(logits), ids, segments, 2)

@jax.jit(static_argnums=0)
def fight(loss, logits):
    def step(x, _):
        ids = pick(x)
        seen = jnp.stack([moe.expert_load(ids, 8, segments == s) for s in (0, 1)])
        measures = moe.mutual_information(seen), moe.max_violation(seen.sum(axis=0))
        return x - RATE / 2 * jax.grad(loss)(x, ids), measures
    return jax.lax.scan(step, logits, None, 2 * DESCENT)[1]

fights = {n: fight(loss, states["own experts"][0]) for n, loss in (("batch", whole_batch), ("sequence-wise", by_sequence))}
for name, (bit, vio) in fights.items():
    print(f"{name:14} mutual information {bit[0]:.2f} -> {bit[-1]:.2f} bit, MaxVio of the batch {vio[0]:.2f} -> {vio[-1]:.2f}")
panels = {label: {n: np.asarray(m[i]) for n, m in fights.items()} for i, label in enumerate(("information (bits)", "MaxVio"))}
plots.over_steps(panels, "Figure 13: two losses, one specialised router")

# %% [markdown]
# With a micro-batch of one sequence, an ordinary "batch" loss *is* the sequence-wise one. Hence the global-batch loss of
# Qwen (arXiv 2501.11873), which counts the load over all micro-batches (`global_balance_loss`), and hence DeepSeek's
# weight of only 1e-4 for the sequence-wise term. Published validation losses at 1B parameters (DeepSeek-V3, section
# 4.5.3): 2.258 sequence-wise, 2.253 loss-free, 2.253 batch-wise. Ours, recorded:

# %%
information = {name: [of_layers(run, "mutual_information") for run in members] for name, members in groups.items()}
title = "Figure 14: recorded, what an expert tells about the domain (mean over layers)"
plots.seeds(information, "mutual information (bits, of at most log2 6)", title) if information else None

# %% [markdown]
# And the three models of this notebook, from their held-out text (few steps, little to see yet):

# %%
for name, (result, _) in runs.items():
    counted = jnp.asarray(result.evaluation.load)  # [domains, layers, E]
    bits_by_layer = moe.mutual_information(counted.swapaxes(0, 1))
    print(f"{name:17} mutual information by layer: {np.asarray(bits_by_layer).round(3)}")
result, _ = runs["loss-free, 0.02"]
shown = result.evaluation.load[:, :2]  # two of the four layers
plots.experts_by_domain(shown, list(result.evaluation.per_domain), "Figure 15: loss-free (0.02), experts by domain")

# %% [markdown]
# > **Key observation.** Balanced over the batch and specialised by domain are compatible. Balanced within each sequence
# > and specialised by domain are not.
#
# ## What imbalance costs
#
# Put the experts on several devices (lesson 08): everyone waits for the busiest, so a layer takes the **straggler
# factor** times its balanced time. Or fix the slots of each expert at `capacity_factor` times the mean load, as GShard
# and Switch do: then what does not fit is dropped, and its token goes on with the residual alone. Both from the loads
# just measured, mean over layers and over the last steps:

# %%
devices, factors = [1, 2, 4, 8], [0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0]
straggler, dropped = {}, {}
for name, steps in loads.items():
    last = jnp.asarray(steps[-late:])  # [late, layers, E]
    straggler[name] = [float(moe.straggler_factor(last, n).mean()) for n in devices]
    mean = float(last[0, 0].mean())
    rate = jax.vmap(moe.drop_rate, in_axes=(0, None))
    dropped[name] = [float(rate(last.reshape(-1, 8), int(np.ceil(c * mean))).mean()) for c in factors]
    print(f"{name:17} 8 devices: {straggler[name][-1]:.2f}x; capacity factor 1.25 drops {dropped[name][2]:.0%}")
plots.price_of_imbalance(devices, straggler, factors, dropped, "Figure 16: the price, from measured loads")

# %% [markdown]
# > **Key observation.** More devices make it worse, because neighbours no longer average out. A capacity large enough to drop
# > nothing from a collapsed router needs E/K times the slots, most of them filled with zeros.
#
# ## Be the controller
#
# Four experts, 24 tokens, K = 2. In a live notebook the sliders move tokens; on the web you see where `bias_update` gets
# in 40 steps. Can you beat it? And which bias starves an expert completely?

# %%
rng = np.random.default_rng(0)
toy = (1 / (1 + np.exp(-rng.normal([1.0, 0.4, -0.2, -0.8], 1.0, (24, 4))))).astype(np.float32)
best = jnp.zeros(4)
for _ in range(40):
    best = moe.bias_update(best, moe.expert_load(moe.select_topk(jnp.asarray(toy), best, 2), 4), 0.01)


def board(bias, title):
    return plots.choices_under_bias(toy, np.array(bias, float), 2, title)


try:
    import ipywidgets
except ImportError:  # pip install "minimoe[notebooks]" brings it
    ipywidgets = None
live = "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in globals() or "google.colab" in sys.modules
if live and ipywidgets is not None:  # Jupyter, VS Code or Colab: someone is there to move a slider
    look = {"min": -0.6, "max": 0.6, "step": 0.02, "continuous_update": False}  # redraw on release, not on the way
    sliders = {f"expert_{e}": ipywidgets.FloatSlider(0, **look) for e in range(4)}
    ipywidgets.interact(lambda **yours: board(list(yours.values()), "24 tokens under your bias"), **sliders)
board(best, "Figure 17: 24 tokens under the bias of 40 updates")

# %% [markdown]
# ## What to distrust
#
# - **The collapse is ours.** It depends on seed, scores, initial size of the router and learning rate. Change one and
#   another layer collapses, or none. What carries over is the mechanism and the way to look.
# - **Short runs.** In a few hundred steps the experts have hardly specialised, so what a collapse costs here says little
#   about runs a thousand times longer, in either direction.
# - **The toy descents** (Figures 7 and 13) have free logits and no task. They show where a loss pulls, not where a
#   trained model ends up.
# - **One number.** MaxVio sees the busiest expert only; a layer with one dead expert can have a good MaxVio. Look at dead
#   experts and entropy beside it. And MaxVio of a *batch* contains sampling noise, MaxVio of the whole text does not.
# - **Weights.** 0.01 for the Switch loss and 0.02 for the bias are one choice each, not tuned. A method that loses in Figure 10 may win
#   with another weight.
# - **Straggler factors** count tokens. Real devices also wait for the network, and run few tokens inefficiently.
#
# ## Exercises
#
# Three functions to write, each in place of its `raise`. `check` says what is wrong in the idea, not only that a number
# differs; `hint("balance.switch_loss")` says more, three times. The same checks grade a file: `minimoe exercises --help`.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["balance.switch_loss"]

# %%
def switch_loss(probs, experts):
    raise NotImplementedError("not written yet: balance.switch_loss")


check("balance.switch_loss", switch_loss);

# %%
exercises()["balance.sequence_loss"]

# %%
def sequence_loss(probs, experts, segments, num_segments):
    raise NotImplementedError("not written yet: balance.sequence_loss")


check("balance.sequence_loss", sequence_loss);

# %%
exercises()["balance.bias_update"]

# %%
def bias_update(bias, load, rate):
    raise NotImplementedError("not written yet: balance.bias_update")


check("balance.bias_update", bias_update);

# %% [markdown]
# And without a check: give the controller a step proportional to the error, `rate * (mean - load) / mean`, and draw Figure
# 9 again. The paper tried it: better balance, no better perplexity. Do you see the first half?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
