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
# A sparse model stores many parameters and multiplies few of them for a token. The stored ones are its **total**
# parameters. The multiplied ones are its **active** parameters. The others are *idle* for that token. In this lesson you
# build such a layer, train it, and see what the idle parameters buy. Then you count parameters, read what longer training
# of text shows, and measure where sparse models lose.
#
# | | |
# | --- | --- |
# | **You should know** | lesson 00, or: what a feed-forward layer is |
# | **You will be able to** | write a Mixture-of-Experts (MoE) layer; count its total and active parameters; size a fair dense opponent; say what a comparison holds equal; name the places where sparse models lose |
# | **Time to study** | 45 minutes; the three exercises take 10 to 25 minutes each; *Further* takes 5 |
# | **Time to run** | about two minutes on two CPU cores, one with `MINIMOE_FAST=1` (then training is cut short and its numbers mean nothing) |

# %%
import os
import platform
import time
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import minimoe
from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, plots
from minimoe.errors import UserError
from minimoe.exercises import check, exercises, hint
from minimoe.experiments import read_record
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
# Take a sparse and a dense model. Which is better? The question has no answer before you say **at equal what**: tokens,
# floating-point operations (FLOPs), seconds, active parameters or total parameters. A paper picks one. We look at
# several.
#
# **Predict before you run.** Put a share between 0 and 1 in place of each `None`. The shares are compared further down. The
# first two are about the small experiment that follows: a dense layer and a sparse layer of equal arithmetic learn random
# facts by heart. The last one asks: a layer has 256 experts, each token chooses 6 of them, and 32 tokens come at once. What
# share of the experts does at least one of the tokens need?

# %%
predictions = {
    "share of the facts that the dense layer recalls": None,
    "share of the facts that 16 experts recall": None,
    "share of DeepSeek-V4-Pro's parameters that one token uses": None,
    "share of 256 experts, 6 a token, that 32 tokens read": None,
}


def compare(question, measured):
    """Your prediction beside the measurement; without a prediction it waits."""
    guess = predictions[question]
    answer = "fill in your prediction, then run this cell again" if guess is None else f"{measured:.1%}; you said {guess:.1%}"
    print(f"{question}: {answer}")


# %% [markdown]
# ## A whole sparse layer in 25 lines
#
# The layer takes T tokens of D numbers each. It has E *experts*: feed-forward networks of hidden width F. A *router*
# gives each token a score between 0 and 1 for each expert, the *affinity*. The K best experts of a token compute it. The
# *combine weights* mix their outputs: the K affinities, divided by their sum. One more expert is *shared*: every token
# uses it.
#
# Three lines use JAX in a way that may be new to you. `.at[...].set(...)` gives a copy of an array with some places filled.
# `jax.vmap(expert, ...)` runs `expert` once for each of the E stacked matrices. `jnp.einsum("te,etd->td", ...)` takes, for
# each token, the sum of the experts' outputs, each times its combine weight. `silu(x)` is $x\,\sigma(x)$, a smooth relative
# of ReLU.

# %%
def expert(x, gate_up, down):
    """One feed-forward network (SwiGLU): x [T, D], gate_up [D, 2F], down [F, D]."""
    gate, up = jnp.split(x @ gate_up, 2, axis=-1)
    return (jax.nn.silu(gate) * up) @ down


def moe_layer(w, x, top_k=2):
    """Each token through its top_k best experts and the shared one: [T, D] to [T, D]."""
    affinities = jax.nn.sigmoid(x @ w["router"])  # [T, E]
    best, chosen = jax.lax.top_k(affinities, top_k)  # [T, K]
    weights = best / best.sum(axis=1, keepdims=True)  # each row sums to 1
    tokens = jnp.arange(len(x))[:, None]
    gates = jnp.zeros_like(affinities).at[tokens, chosen].set(weights)  # [T, E], zero where not chosen
    outputs = jax.vmap(expert, in_axes=(None, 0, 0))(x, w["gate_up"], w["down"])  # [E, T, D]
    return jnp.einsum("te,etd->td", gates, outputs) + expert(x, *w["shared"])


# %% [markdown]
# This code is the clearest one, not the fastest. It runs **every** expert on **every** token, and multiplies most of the
# outputs by zero. The result is that of a sparse layer. The work is not.
#
# ### Train it on facts
#
# Does it learn? Text shows little in a few seconds, so we take a task where capacity is all that counts: a small book of
# random facts. A fact is a *name* (a random vector) and an *answer* (one of 16). Nothing can be inferred. The layer
# recalls the answer of a name, or it guesses and is right once in 16. The opponent is one dense network whose hidden
# width is 3F: as wide as the two chosen experts and the shared one together.

# %%
FACTS, ANSWERS, WIDTH, HIDDEN, EXPERTS = 2048, 16, 16, 8, 16


def matrices(key, *shape):
    return jax.random.normal(key, shape) / shape[-2] ** 0.5


def new_dense(key, hidden):
    up, down = jax.random.split(key)
    return matrices(up, WIDTH, 2 * hidden), matrices(down, hidden, WIDTH)


def new_moe(key):
    router, gate_up, down, shared = jax.random.split(key, 4)
    w = {"router": matrices(router, WIDTH, EXPERTS), "shared": new_dense(shared, HIDDEN)}
    return w | {"gate_up": matrices(gate_up, EXPERTS, WIDTH, 2 * HIDDEN), "down": matrices(down, EXPERTS, HIDDEN, WIDTH)}


def dense_layer(w, x):
    return expert(x, *w)


# %% [markdown]
# The model around the layer is two lines: add the layer's output to its input (the *residual* connection), and multiply
# by a matrix that gives a score for each answer (the *head*). The loss is the cross-entropy: small when the right answer
# gets a high probability. The optimiser is Adam. `jax.lax.scan` repeats the training step inside one compiled program. All
# facts are read in every step.

# %%
def loss_and_recall(params, layer, names, answers):
    logits = (names + layer(params["layer"], names)) @ params["head"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()
    return loss, (logits.argmax(axis=1) == answers).mean()


@partial(jax.jit, static_argnums=(1, 2, 3))
def learn(seed, layer, new, steps):
    """Trains a fresh layer on the book of this seed; returns its parameters, the names, and the share recalled."""
    keys = jax.random.split(jax.random.key(seed), 4)
    names = jax.random.normal(keys[0], (FACTS, WIDTH))
    answers = jax.random.randint(keys[1], (FACTS,), 0, ANSWERS)
    params = {"layer": new(keys[2]), "head": matrices(keys[3], WIDTH, ANSWERS)}
    optimizer = optax.adam(1e-2)

    def step(state, _):
        gradient, _ = jax.grad(loss_and_recall, has_aux=True)(state[0], layer, names, answers)
        updates, moments = optimizer.update(gradient, state[1])
        return (optax.apply_updates(state[0], updates), moments), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, steps)
    return params, names, loss_and_recall(params, layer, names, answers)[1]


# %% [markdown]
# Three seeds each. One seed is one book and one random key for the weights, the same for all four rows. Two more rows are
# controls. One has as many parameters as the sparse layer and uses all of them. The other is the small dense layer,
# trained for four times as many steps.

# %%
STEPS, SEEDS = (20, 1) if FAST else (200, 3)
narrow, wide = partial(new_dense, hidden=3 * HIDDEN), partial(new_dense, hidden=(EXPERTS + 1) * HIDDEN)
rows = {
    "dense, equal FLOPs": (dense_layer, narrow, STEPS),
    "16 experts": (moe_layer, new_moe, STEPS),
    "dense, equal total": (dense_layer, wide, STEPS),
    "dense, 4 times as long": (dense_layer, narrow, 4 * STEPS),
}
recalled = {}
for name, arguments in rows.items():
    runs = [learn(seed, *arguments) for seed in range(SEEDS)]
    recalled[name] = np.array([float(right) for _, _, right in runs])
    size = sum(array.size for array in jax.tree.leaves(runs[0][0]["layer"]))
    shares = "  ".join(f"{share:.1%}" for share in recalled[name])
    print(f"{name:23} {size:6,} parameters   recalled, seed by seed: {shares}")
    if name == "16 experts":
        trained, names, _ = runs[0]

# %%
compare("share of the facts that the dense layer recalls", recalled["dense, equal FLOPs"].mean())
compare("share of the facts that 16 experts recall", recalled["16 experts"].mean())
gain = recalled["16 experts"] - recalled["dense, equal FLOPs"]
print(f"16 experts recall {100 * gain.mean():.0f} points more than dense at equal FLOPs; "
      f"more in {(gain > 0).sum()} of {len(gain)} paired seeds")

# %% [markdown]
# > **Key observation.** A token meets as many weights in the first row as in the second, apart from the router. The
# > sparse layer stores more, and recalls more of the book with every seed.
#
# Parameters that are idle for one name are used by another name. The third row shows that capacity is the reason: a
# dense layer of that size recalls everything, but multiplies all of it for every token. The fourth row shows that
# time is not the reason: four times the steps help the small dense layer little.
#
# ### Replace it by the library's
#
# The library's layer has the same parameters under the same names. Give it our trained weights, and both must compute
# the same. The library sorts tokens by expert and computes only the chosen pairs.

# %%
from minimoe.cost import count_params, forward_flops_per_token, moe_layer_flops
from minimoe.moe import MoELayer

toy = MoEConfig(WIDTH, HIDDEN, EXPERTS, top_k=2, num_shared_experts=1, score="sigmoid")
layer, w = MoELayer(toy, rngs=nnx.Rngs(0)), trained["layer"]
layer.router.kernel[...] = w["router"]
layer.experts.gate_up_proj[...], layer.experts.down_proj[...] = w["gate_up"], w["down"]
layer.shared.gate_up_proj.kernel[...], layer.shared.down_proj.kernel[...] = w["shared"]
ours, (theirs, routing) = moe_layer(w, names), layer(names)
np.testing.assert_allclose(theirs, ours, atol=1e-4)
every = moe_layer_flops(MoEConfig(WIDTH, HIDDEN, EXPERTS, top_k=EXPERTS, num_shared_experts=1), tokens=FACTS)
print(f"largest difference {float(jnp.abs(theirs - ours).max()):.1e}, of outputs up to {float(jnp.abs(ours).max()):.0f}")
print(f"ours: {every / 1e6:.0f} MFLOPs for {FACTS} tokens; the library's: {moe_layer_flops(toy, tokens=FACTS) / 1e6:.0f}")
print("tokens of each expert:", np.asarray(routing.load, int))

# %% [markdown]
# **Exercise 1.** Our layer runs all experts on all tokens. Write the part behind the router without that waste: given
# the chosen experts and the weights, call only the chosen ones. `check` says what is wrong in the idea. `hint` gives up to
# three hints. The same checks grade a file: `minimoe exercises --help`.

# %%
exercises()["sparse.moe_forward"]

# %%
def moe_forward(x, experts, weights, gate_up, down):
    raise NotImplementedError("not written yet: sparse.moe_forward")


check("sparse.moe_forward", moe_forward);

# %% [markdown]
# ## Five tokens by hand
#
# A layer that fits on paper: tokens of D = 4 numbers, E = 4 experts with hidden width F = 3, K = 2 of them a token, none
# shared. An expert has three matrices of D x F, so 36 parameters. The router has D x E = 16. The five tokens are those of
# lesson 00. Work out four numbers before you run the cell: the parameters stored; the parameters that one token meets;
# the FLOPs of five tokens (a multiply-add counts as 2); and how many experts the five tokens need *together*.

# %%
D, F, E, K = 4, 3, 4, 2
chosen = [(0, 1), (0, 1), (2, 0), (0, 1), (0, 3)]  # the experts of the five tokens
one_expert, router = 3 * D * F, D * E
stored, met = router + E * one_expert, router + K * one_expert
needed = sorted({expert for pair in chosen for expert in pair})
print(f"stored {stored}, one token meets {met} ({met / stored:.0%})")
print(f"five tokens: {5 * 2 * met} FLOPs, and experts {needed}: {router + len(needed) * one_expert} parameters are read")
assert moe_layer_flops(MoEConfig(D, F, E, K), tokens=5) == 5 * 2 * met
plots.assignments(chosen, E, "Figure 1: five tokens, four experts")

# %% [markdown]
# *What to see: each token uses two experts, and the last row shows that the five tokens use all four.*
#
# > **Key observation.** "Active" is a statement about **one** token. FLOPs follow the active parameters.
# > The bytes read follow the distinct experts of the batch. The bytes in memory follow the total.
#
# **Exercise 2.** Now for any layer, with S shared experts.

# %%
exercises()["sparse.params"]

# %%
def params(d_model, d_expert, num_experts, top_k, num_shared_experts):
    raise NotImplementedError("not written yet: sparse.params")


check("sparse.params", params);

# %% [markdown]
# **Exercise 3.** A fair opponent at equal FLOPs.

# %%
exercises()["sparse.dense_width"]

# %%
def dense_width(d_model, d_expert, num_experts, top_k, num_shared_experts):
    raise NotImplementedError("not written yet: sparse.dense_width")


check("sparse.dense_width", dense_width);

# %% [markdown]
# ## The formula
#
# For token $t$ with input $u_t$, and gates $g_{t,i}$ that are zero for all but K of the E routed experts,
#
# $$h'_t=u_t+\sum_{i=1}^{S}\text{FFN}^{(s)}_i(u_t)+\sum_{i=1}^{E} g_{t,i}\,\text{FFN}_i(u_t)$$
#
# (DeepSeek-V3, arXiv 2412.19437, equation 12). The sum names all experts. The work is only that of the experts whose gate
# is not zero. Now count. A model has L layers. Each has A parameters in its attention, a router of D x E, and E + S experts of
# 3DF. The vocabulary has V tokens. Norms are left out:
#
# $$N_\text{total}=n_V VD+L\,(A+DE+3DF(E+S)),\qquad N_\text{active}=VD+L\,(A+DE+3DF(K+S))$$
#
# Here $n_V$ is 1 if the output head reuses the embedding, and 2 if not. The input embedding is a look-up and no product,
# so it is not active. The output head is. A forward pass costs about $2N_\text{active}$ FLOPs a token, plus the scores of
# attention. Formulas are easy to get wrong, so we count the arrays of `nano`, the model of these lessons, as well. A
# stacked array of E experts counts with K of its E slices.

# %%
from minimoe.training.loop import init_model

nano = ModelConfig.preset("nano")
count = count_params(nano)
total = active = 0
for path, array in nnx.to_flat_state(nnx.state(init_model(nano, 0), nnx.Param)):
    size = array[...].size
    total += size
    active += size * nano.moe.top_k // nano.moe.num_experts if "experts" in path else size
    if path[:3] == ("layers", 0, "ffn"):
        print(f"{'.'.join(map(str, path)):40} {array[...].shape!s:15} {size:8,}")
print(f"arrays:  {total:,} total, {active:,} active\nformula: {count.total:,} total, {count.active:,} active")
assert (total, active) == (count.total, count.active)

# %% [markdown]
# Three more models will compete with `nano` below. `dense` has its FLOPs. `dense-total` has its total. `experts-32` has
# its FLOPs and four times its experts.

# %%
from minimoe.experiments.contestants import contestants
from minimoe.plots.sparse import IDLE


def parts(count):
    """Parameters by part; what one token uses comes first."""
    named = {"embedding and head": count.embedding + count.head, "attention": count.attention + count.norms}
    named |= {"router": count.router, "shared or dense": count.shared, "routed, active": count.routed_active}
    return named | {IDLE: count.routed - count.routed_active}


models = contestants()
counts = {name: count_params(config) for name, config in models.items()}
for name, c in counts.items():
    mflops = forward_flops_per_token(models[name]) / 1e6
    print(f"{name:11} {c.total:9,} total {c.active:9,} active ({c.active / c.total:4.0%})  {mflops:.2f} MFLOPs a token")
plots.parameter_parts({name: parts(c) for name, c in counts.items()}, "Figure 2: four models and their parts")

# %% [markdown]
# *What to see: the dark parts of `dense`, `experts-8` and `experts-32` are nearly equally long; only the pale, idle part
# grows.*
#
# ## The press's numbers: DeepSeek-V4
#
# "Engages only a fraction of its capacity per step": which fraction? The totals and the active parts are published, and
# so are the sizes of the experts (`config.json` of DeepSeek-V4-Flash and -Pro on the Hugging Face hub; section 4.2.1 of
# the report, arXiv 2606.19348; DeepSeek-V3: arXiv 2412.19437). We compute the experts and the head from the sizes.

# %%
published = {  # layers, D, experts, F, total, active
    "V4-Flash": (43, 4096, 256, 2048, 284e9, 13e9),
    "V4-Pro": (61, 7168, 384, 3072, 1.6e12, 49e9),
}
v4_counts = {}
for name, (layers, d, num_experts, f, whole, part) in published.items():
    moe = MoEConfig(d, f, num_experts, top_k=6, num_shared_experts=1, score="sqrtsoftplus")
    one_wide = GroupedQueryConfig(1, 1, 2)  # nearly no attention: it is not counted here
    c = count_params(ModelConfig(129_280, d, layers, one_wide, moe, tie_embeddings=False))
    v4_counts[name], met = c, c.routed_active + c.shared
    print(f"{name}: experts {(c.routed + c.shared) / 1e9:,.1f}B of the published {whole / 1e9:,.0f}B; "
          f"a token meets {met / 1e9:.1f}B of them and a head of {c.head / 1e9:.1f}B; published: {part / 1e9:.0f}B active")
compare("share of DeepSeek-V4-Pro's parameters that one token uses", 49e9 / 1.6e12)

# %%
small = count_params(ModelConfig.preset("small"))
points = {"nano": (count.total, count.active), "small": (small.total, small.active), "DeepSeek-V3": (671e9, 37e9)}
points |= {name: sizes[-2:] for name, sizes in published.items()}
shares = {name: part / whole for name, (whole, part) in points.items()}
print("active share:", "  ".join(f"{name} {share:.1%}" for name, share in shares.items()))
plots.active_and_total(points, "Figure 3: active against total parameters")

# %% [markdown]
# *What to see: the large models lie between the lines of 10% and 1%, ours above the line of 10%.*
#
# > **Key observation.** The experts are nearly all of V4's total. They are not nearly all of its active part: attention
# > and the head count there. Our `nano` cannot reach a share of 3%, because its embedding alone weighs more than that.
#
# ## What idle parameters buy: facts
#
# The experiment above was one layer. Here it is with whole models: two blocks with attention, a book of 4,096 facts
# spelled in letters and digits, three experts a token. The runs take minutes each, so the results are **recorded** (in
# `minimoe/records/knowledge.json`, made by `minimoe experiments run knowledge`). `experts-N` has N routed experts and the
# FLOPs of `dense`, apart from the router. `dense-total` has as many parameters as `experts-16` and uses all of them.
# `dense-2x` and `dense-4x` are `dense`, reading the book twice and four times as often.

# %%
def recorded(name):
    """The runs of a record, by name and then by seed; empty if the record is not there yet."""
    groups = {}
    try:
        for run, outcome in read_record(name)["runs"].items():
            groups.setdefault(run.rpartition("-")[0], {})[int(run.rpartition("-")[2])] = outcome
    except UserError as error:
        print(error)
    return groups


def paired(groups, one, other, value):
    """value(one) - value(other) for every seed that both have."""
    both = sorted(groups.get(one, {}).keys() & groups.get(other, {}).keys())
    return np.array([value(groups[one][seed]) - value(groups[other][seed]) for seed in both])


facts = recorded("knowledge")
for name, runs in facts.items():
    one = next(iter(runs.values()))
    print(f"{name:12} {one['total_params']:7,} parameters, {one['flops_per_token'] / 1e3:5.1f} kFLOPs a token, "
          f"{len(runs)} seeds: "
          f"{np.mean([run['recalled'] for run in runs.values()]):6.1%} recalled, "
          f"{np.mean([run['bits_per_param'] for run in runs.values()]):.2f} bits a parameter")

# %%
shares = {name: [run["recalled"] for run in runs.values()] for name, runs in facts.items()}
percent = {name: [100 * share for share in values] for name, values in shares.items()}
plots.seeds(percent, "facts recalled, %", "Figure 4: recorded, one dot for each seed, 4,096 facts")

# %% [markdown]
# *What to see: how far the dots move right from `dense` to `experts-64`, and where the three longer or larger dense
# models lie beside them.* (The number at the right is the mean of the seeds ± their standard deviation.)

# %% [markdown]
# The recorded runs shared a machine, so their seconds do not compare. We time one training step of the two models in
# turn instead. Equal time for `experts-16` is `dense`, trained for as many more steps as its step is shorter.

# %%
from minimoe.bench import alternate
from minimoe.data import FactBook
from minimoe.experiments.knowledge import fact_contestants
from minimoe.training import fact_run, init_training, train_step

book, fact_models = FactBook(4096, letters=3, digits=3), fact_contestants()
batch = book.batch(0, 0, 512, book.length)
given = [jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.where)]


def stepper(config):
    run = fact_run(book, config)
    state = init_training(run)
    return lambda: train_step(*state, *given, jax.random.key(0), recipe=run.recipe).loss.block_until_ready()


timings = alternate({name: stepper(fact_models[name]) for name in ("dense", "experts-16")}, rounds=3 if FAST else 12, warmup=1)
step_ratio = timings["experts-16"].median / timings["dense"].median
print(f"a step of experts-16 takes {step_ratio:.2f} times the step of dense")

# %%
for name in [name for name in facts if name != "dense"]:
    gap = paired(facts, name, "dense", lambda run: run["recalled"])
    flops = next(iter(facts[name].values()))["flops_per_token"] / next(iter(facts["dense"].values()))["flops_per_token"]
    print(f"{name:12} {flops:.2f}x the FLOPs a token: {100 * gap.mean():+5.1f} points against dense, "
          f"ahead in {(gap > 0).sum()} of {len(gap)} paired seeds")
longer = {times: paired(facts, "experts-16", f"dense-{times}x", lambda run: run["recalled"]) for times in (2, 4)}
for times, gap in longer.items():
    print(f"experts-16 against dense-{times}x: {100 * gap.mean():+.1f} points, ahead in {(gap > 0).sum()} of {len(gap)}")
equal_time = 2 if step_ratio <= 2 else 4  # the first of the two that has at least the time of experts-16
print(f"dense-{equal_time}x has at least the time of experts-16")

# %% [markdown]
# > **Key observation.** At equal FLOPs, sparse models recall more facts, in every paired seed, and 16 experts do so at equal time too.
#
# Two rows limit the claim. `dense-total` holds the book as well, for more FLOPs a token. `dense-4x` shows that the small dense model goes on
# learning. `experts-64` holds fewer bits a parameter than `dense`: it recalls nearly the whole book, so part of its
# room is empty.
#
# ## Text, at a length where it shows
#
# Text is a harder judge: a model that cannot hold a rare fact can still guess most of the next token. First a **short**
# training, 1.2 million tokens, three seeds (recorded: `sparse-vs-dense`). Quality is *bits per byte* of held-out text;
# lower is better. One seed decides weights and batches, so we compare runs of one seed.

# %%
short = recorded("sparse-vs-dense")
short_gap = {}
for other in ("dense", "dense-equal-time"):
    short_gap[other] = paired(short, "sparse", other, lambda run: run["full"]["bits_per_byte"])
    ahead = (short_gap[other] < 0).sum()
    print(f"sparse minus {other}: {short_gap[other].round(3)}; sparse is better in {ahead} of {len(short_gap[other])} seeds")
for name, runs in short.items():
    seconds = [run["train_seconds"] for run in runs.values()]
    print(f"{name:16} {min(seconds):.0f} to {max(seconds):.0f} s of training")

# %% [markdown]
# At equal tokens the sign changes with the seed, so at this length the winner is open. The runs `dense-equal-time` were
# meant to take as long as the sparse ones. They took less time, and they still won with every seed.
#
# Now **longer** training, 6.1 million tokens (record `longer-text`). How many steps "equal time" means is measured
# separately, by timing all four models in turn (record `step-times`). They were timed twice. By the first ratio the runs at
# equal time were *given* their steps. The second has more rounds, and says how far the middle half of the rounds lies apart.

# %%
steps = read_record("step-times")
for name, ratio in steps["ratio"].items():
    low, high = steps["quartiles"][name]
    print(f"{name:11} {steps['milliseconds'][name]:6.1f} ms a step, {ratio:.2f}x the step of dense [{low:.2f}, {high:.2f}]; "
          f"given {steps['given'][name]:.2f}x")
text = recorded("longer-text")
wanted = ["dense", "dense-total", "experts-8", "experts-32", "dense-as-long-as-8", "dense-as-long-as-32"]
for name in [name for name in wanted if name in text]:
    first = next(iter(text[name].values()))
    print(f"{name:20} {len(text[name])} seeds, {first['tokens'] / 1e6:.1f}M tokens, {first['machine']}")
print("not recorded yet:", [name for name in wanted if name not in text] or "nothing")

# %% [markdown]
# The **gap** is the sparse model's bits per byte minus the dense model's, both of one seed: below zero, sparse is better.
# At equal tokens both have read the same. At equal time the dense model has read more, by the ratio of the step times;
# both are then at the same share of their training. The scores along the way are measured on a part of the validation text
# (the *quick protocol*), the final scores on all of it.

# %%
def curve(run):
    """Tokens and bits per byte of the evaluations along the way (quick protocol)."""
    lines = [line for line in run["curve"] if line["kind"] == "eval" and line["protocol"] == "quick"]
    return np.array([line["tokens"] for line in lines]), np.array([line["bits_per_byte"] for line in lines])


def gap_curves(one, other, ratio=1.0):
    """One curve a seed: (tokens of ``one``, gap), with ``other`` read off where it is ``ratio`` times as far."""
    curves = []
    for seed in sorted(text.get(one, {}).keys() & text.get(other, {}).keys()):
        (at, bits), (other_at, other_bits) = curve(text[one][seed]), curve(text[other][seed])
        inside = ratio * at >= other_at[0]
        gap = bits - np.interp(ratio * at, other_at, other_bits)
        curves.append(np.stack([at, gap], axis=1)[inside])
    return curves


# %%
gaps = {}
for name in ("experts-8", "experts-32"):
    gaps[f"{name}, equal tokens"] = gap_curves(name, "dense")
    gaps[f"{name}, equal time"] = gap_curves(name, f"dense-as-long-as-{name[8:]}", steps["given"][name])
gaps["dense-total, equal tokens"] = gap_curves("dense-total", "dense")
gaps = {name: curves for name, curves in gaps.items() if curves}
for name, curves in gaps.items():
    ends, mean = np.array([c[-1, 1] for c in curves]), np.mean([c[:, 1] for c in curves], axis=0)
    below = [t for i, t in enumerate(curves[0][:, 0]) if (mean[i:] < 0).all()]
    since = f"the mean stays below zero from {below[0] / 1e6:.1f}M tokens on" if below else "the mean does not stay below zero"
    print(f"{name:26} {since}; at the end {ends.mean():+.3f}, {(ends < 0).sum()} of {len(ends)} seeds below zero")
plots.gaps_over_tokens(gaps, "Figure 5: recorded, gap to the dense model") if gaps else None

# %% [markdown]
# *What to see: at equal tokens the sparse models start above zero and end below it; at equal time both start far above zero,
# and 32 experts stay there.* A thin line is one seed, a thick line their mean. The tokens are those of the sparse model;
# `dense-total` is the dense model with the parameters of 8 experts, at equal tokens too.
# The final scores, on all validation text:

# %%
def score(run):
    return run["full"]["bits_per_byte"]


text_gap = {}
for name in ("experts-8", "experts-32"):
    text_gap[name, "tokens"] = paired(text, name, "dense", score)
    text_gap[name, "time"] = paired(text, name, f"dense-as-long-as-{name[8:]}", score)
text_gap["dense-total", "tokens"] = paired(text, "dense-total", "dense", score)
for (name, what), gap in text_gap.items():
    print(f"{name:11} minus dense at equal {what:6}: {gap.round(3)}, better in {(gap < 0).sum()} of {len(gap)} seeds")
full = {name: [score(run) for run in text[name].values()] for name in wanted if name in text}
title = "Figure 6: recorded, one dot for each seed"
plots.seeds(full, "bits per byte, whole validation text (lower is better)", title) if full else None

# %% [markdown]
# *What to see: `experts-8` and `experts-32` lie left of `dense`; `dense-as-long-as-8` lies among them, and
# `dense-as-long-as-32` left of everything.* (The number at the right is the mean of the seeds ± their standard deviation.)
#
# > **Key observation.** Length matters. After 1.2 million tokens the seeds do not agree at equal tokens.
# > After 6.1 million the sparse models are ahead on the mean.
#
# There 32 experts are ahead in every seed, and 8 experts in all but one, where they tie. At equal time 8 experts are level with
# the dense model, and 32 experts are behind it in every seed: their step is slower, so the dense model reads more in that time.
# (It was given a little less than equal time, by the second clock, and is ahead all the same.) On a machine where the step of
# 32 experts is nearer to that of dense, this can be otherwise. More experts do not help text here as they help facts.
# One control is missing: the dense runs were made on another machine than the sparse ones (printed above), with the
# same seeds and batches.
#
# ## Problems, with their steps
#
# Facts ask for room. Text asks for some of it. What does **reasoning** ask for? The same four models read 8.2 million
# tokens, nine tenths of them arithmetic problems with their steps written out. Then they solve 500 problems with numbers
# that they never saw (record `longer-problems`; all twelve runs on one machine).

# %%
problems = recorded("longer-problems")


def solved(run):
    """Per cent of 500 validation problems, asked for the steps."""
    return 100 * run["tasks"]["worked"]["mean_exact_match"]


for name in [name for name in ("experts-8", "experts-32", "dense-total") if name in problems]:
    gap = paired(problems, name, "dense", solved)
    print(f"{name:11} minus dense: {gap.round(1)} points, more solved in {(gap > 0).sum()} of {len(gap)} seeds")
right = {name: [solved(run) for run in runs.values()] for name, runs in problems.items()}
plots.seeds(right, "problems solved, %", "Figure 7: recorded, one dot for each seed") if right else None

# %% [markdown]
# *What to see: `dense` alone spans nearly the whole figure, and the range of every model overlaps that of every other.*
#
# > **Key observation.** One seed of one model solves six times as many problems as another seed of the same model. No
# > difference between the models is as large as that, so three seeds show no effect of idle parameters on reasoning, in
# > either direction.
#
# Much larger experiments ([Mixture of Parrots](https://arxiv.org/abs/2410.19034)) found a pattern that this figure does not
# contradict: experts help to memorise, and do less for reasoning. Here it stays a guess.
#
# ## Where sparse models lose
#
# ### 1. Steps and memory
#
# FLOPs are not seconds and not bytes. The times are those of the record `step-times`, a step of 2,048 tokens. (The ratios
# printed above are medians over rounds, and those below quotients of median times: they differ a little.) The optimiser AdamW
# keeps two running means, the *moments*, for **every** parameter, idle ones too. So training in float32 keeps three numbers of
# four bytes for each from step to step, and within a step its gradient too.

# %%
costs = {
    name: {
        "MFLOPs a token": forward_flops_per_token(config) / 1e6,
        "ms a step": steps["milliseconds"][name],
        "MB weights": 4 * counts[name].total / 1e6,
        "MB AdamW": 8 * counts[name].total / 1e6,
    }
    for name, config in models.items()
}
for name, row in costs.items():
    print(f"{name:11}", "  ".join(f"{label} {value / costs['dense'][label]:.2f}x" for label, value in row.items()))
plots.costs_side_by_side(costs, "Figure 8: a training step of 8 x 256 tokens")

# %% [markdown]
# *What to see: the sparse models have the FLOPs of the small dense model, bytes that grow with the experts, and a step
# time between those of `dense` and `dense-total`.*
#
# ### 2. Batches
#
# One token reads K experts of E. Let B tokens choose independently and evenly. One token misses a given expert with
# probability $1-K/E$. All B tokens miss it with probability $(1-K/E)^B$. So the batch reads a share $1-(1-K/E)^B$ of the
# experts. The dots are the trained `nano` on held-out text: B
# tokens from random places (as if decoding B conversations), and B tokens in a row (as in reading a prompt).

# %%
from minimoe import load_pretrained
from minimoe.data import documents

model, tokenizer, _ = load_pretrained("nano")  # trained weights, in the package
validation = [d for d in documents() if d.split == "val"]
text_of_all = "".join(d.text[:2500] for d in validation[:: max(1, len(validation) // 12)])
ids = jnp.asarray(tokenizer.encode(text_of_all)[: 256 * 16], jnp.int32)
_, routings = model(ids[: len(ids) // 256 * 256].reshape(-1, 256))
picked = [np.asarray(routing.experts) for routing in routings]
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
dots = {
    "nano, scattered tokens": [share_read(size, scattered=True) for size in sizes],
    "nano, tokens in a row": [share_read(size, scattered=False) for size in sizes],
}
at_32 = formula["formula, 6 of 256 (V4-Flash)"][sizes.index(32)]
compare("share of 256 experts, 6 a token, that 32 tokens read", at_32)
plots.experts_read(sizes, formula, dots, "Figure 9: experts read by a batch")

# %% [markdown]
# *What to see: a batch of 16 tokens reads most of `nano`'s experts, a batch of 128 most of V4's. The dots lie below
# `nano`'s line: real choices are neither even nor independent.*
#
# ### 3. One layer, on a clock
#
# One feed-forward layer by itself, with T tokens at once: sparse, dense at equal FLOPs, dense at equal total. It is
# larger than `nano`'s, so that its weights do not fit the nearest caches of a core. All three are compiled and then timed
# in turn.

# %%
from minimoe.layers import SwiGLU

BIG = 512
layers = {
    "sparse, 2 of 8 and 1 shared": MoELayer(MoEConfig(BIG, BIG, 8, 2, num_shared_experts=1), rngs=nnx.Rngs(0)),
    "dense, equal FLOPs": SwiGLU(BIG, 3 * BIG, rngs=nnx.Rngs(0)),
    "dense, equal total": SwiGLU(BIG, 9 * BIG, rngs=nnx.Rngs(0)),
}
run_layer = jax.jit(lambda graphdef, weights, x: jax.tree.leaves(nnx.merge(graphdef, weights)(x))[0], static_argnums=0)
tokens_at_once = [1, 16, 256] if FAST else [1, 4, 16, 64, 256, 1024]
microseconds = {name: [] for name in layers}
for size in tokens_at_once:
    x = jax.random.normal(jax.random.key(0), (size, BIG))
    calls = {
        name: lambda split=nnx.split(layer), x=x: run_layer(*split, x).block_until_ready() for name, layer in layers.items()
    }
    for name, timing in alternate(calls, rounds=5 if FAST else 15, warmup=2).items():
        microseconds[name].append(1e6 * timing.median / size)

# %%
sparse_us, *dense_us = (np.array(values) for values in microseconds.values())
for name, values in zip(list(layers)[1:], dense_us, strict=True):
    ratios = "  ".join(f"T={t}: {r:.2f}x" for t, r in zip(tokens_at_once, sparse_us / values, strict=True))
    slower = [t for t, r in zip(tokens_at_once, sparse_us / values, strict=True) if r > 1]
    print(f"time of sparse over {name}: {ratios}; sparse is slower at T = {slower or 'none of them'}")
plots.time_per_token(tokens_at_once, microseconds, "Figure 10: one layer, T tokens at once")

# %% [markdown]
# *What to see: where the sparse line crosses the line of equal total, and how far it stays above the line of equal FLOPs.*
#
# > **Key observation.** The sparse layer needs more time than the dense layer of equal FLOPs wherever the first printed
# > row is above 1. It needs less time than the dense layer of equal total wherever the second row is below 1.
#
# A guess at the reason for the high ratios at few tokens: up to 16 chosen pairs, our code fetches an expert anew for
# each pair (`few_tokens` in `minimoe/moe/dropless.py`). A little above that, each expert has only a few rows. Serving
# systems gather many conversations into a batch, so that every expert has many rows.
#
# ## What to distrust
#
# - **Facts.** A book of random facts asks for capacity and nothing else. It is the task on which idle parameters look
#   best. Text asks for less of it. On problems our seeds differ too much to tell.
# - **Sizes.** In a model of two million parameters the embedding and the head are a large part of what is active, and
#   eight experts are few. V4's share of 3% is computed here, not trained.
# - **The clock.** Two CPU cores. A GPU moves the crossings in Figure 10 (a guess: against the sparse layer, because it
#   wants larger products).
# - **Equal FLOPs as a standard.** Sparse models were made to win this comparison. Always ask for equal time and equal
#   total too.
# - **Formulas that assume even, independent choices.** Compare dots and lines in Figure 9.
#
# ## Verdict

# %%
nano_share, pro_share = counts["experts-8"].active / counts["experts-8"].total, 49e9 / 1.6e12
plots.verdict(
    claim="A dynamic routing mechanism engages only a fraction of the model's capacity per inference step.",
    means="For one token, the active parameters are a small share of the total ones.",
    measured=f"One token uses {pro_share:.1%} of V4-Pro (published sizes) and {nano_share:.0%} of our nano (counted). "
    f"32 tokens together read {at_32:.0%} of V4-Flash's experts (formula).",
    says="holds when you count one token: a batch of tokens reads far more of the model, and memory holds all of it",
    would_change="A published count of active parameters that the arrays contradict.",
)

# %%
gap = paired(facts, "experts-16", "dense", lambda run: run["recalled"])
in_time = longer[equal_time]
flops = {name: next(iter(runs.values()))["flops_per_token"] for name, runs in facts.items()}


def signed(gap):
    return f"mean {gap.mean():+.3f}, better in {(gap < 0).sum()} of {len(gap)} seeds" if len(gap) else "not recorded"


of_text = "; ".join(f"{name} at equal {what}: {signed(gap)}" for (name, what), gap in text_gap.items())
wins = all((gap < 0).all() for (_, what), gap in text_gap.items() if what == "time")
of_problems = paired(problems, "experts-8", "dense", solved)
agree = "agree" if abs(np.sign(of_problems).sum()) == len(of_problems) else "disagree"
in_tokens = "32 experts win at equal tokens, and no sparse model at equal time"
on_text = in_tokens if (text_gap["experts-32", "tokens"] < 0).all() else "no sparse model wins"
yes = "holds" if wins else f"holds when facts must be remembered, at equal time too; on text of this size {on_text}"

# %%
plots.verdict(
    claim="Sparsity drastically reduces the TFLOPS required.",
    means="At equal quality, a sparse model needs fewer FLOPs a token than a dense one.",
    measured=f"Facts: experts-16 recalls {100 * gap.mean():+.0f} points against dense at equal FLOPs, and "
    f"{100 * in_time.mean():+.0f} against dense with {equal_time} times the steps ({len(gap)} seeds). Dense of equal "
    f"total costs {flops['dense-total'] / flops['experts-16']:.1f} times its FLOPs. Text, bits per byte, "
    f"6.1M tokens: {of_text}. Problems solved, experts-8 against dense: the seeds {agree}.",
    says=yes if (gap > 0).all() and (in_time > 0).all() else "does not show here",
    would_change="Facts: a dense model of equal FLOPs and equal time that recalls as much. Text: sparse ahead at equal time in "
    "all paired seeds.",
)

# %% [markdown]
# > **In one sentence.** A sparse model buys room for more knowledge at nearly the same FLOPs a token, and pays for it in
# > memory, in bytes read by a batch, and in a slower step.
#
# ## Further
#
# **Memory when serving.** For one conversation decoding is limited by reading weights, and a token reads few. But all
# experts must be in memory. V4 stores its experts in FP4, 4.25 bits a weight with the scales (lesson 04):

# %%
for name, c in v4_counts.items():
    resident, read = c.routed * 4.25 / 8, c.routed_active * 4.25 / 8
    print(f"{name}: routed experts fill {resident / 1e9:.0f} GB; one token reads {read / 1e9:.2f} GB ({read / resident:.1%})")

# %% [markdown]
# **Balance.** If a few experts take most tokens, the others are idle for the whole book, and their room is lost. Look at
# "tokens of each expert" above: our layer was trained without any balancing. Lesson 03 is about that. Many narrow experts
# instead of few wide ones, at the same active parameters, are in lesson 02.
#
# **Try it.** Change `EXPERTS` to 4 and to 64, and run the first section again. Change `FACTS` to 512: what happens to the
# gain when the dense layer can hold the whole book?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
