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
# # 08 · Hardware: what a step waits for, and what a slower link changes
#
# The press told the story of DeepSeek as a story of chips: trained on what the export rules left, and cheap nevertheless. A
# chip can do three things: **compute, read its memory, and talk to other chips**. A rule that cuts one of them hurts only
# programs that wait for that one. So the question is what a sparse model waits for. This lesson measures it here, then computes
# it for chips that we do not have.
#
# | | |
# | --- | --- |
# | **You should know** | lessons 00 and 01; lesson 06 helps (what a cache is) |
# | **You will be able to** | draw a roofline and place a layer on it; say why writing text waits for memory and training does not; count the experts that a batch wakes; say what an H800 lacks and whom that hurts; divide experts over devices and count what they send |
# | **Time to study** | 45 minutes; the three exercises take 10 to 20 minutes each |
# | **Time to run** | about a minute and a half on two CPU cores |

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before JAX: one processor plays eight devices

import dataclasses
import functools
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Markdown, display
from jax.sharding import PartitionSpec as P

import minimoe
from minimoe import MoEConfig, cost, data, hub, parallel, plots
from minimoe.claims import ledger
from minimoe.experiments import read_record
from minimoe.layers import SwiGLU
from minimoe.moe import MoELayer, sparse_layers
from minimoe.process import keep_compiled_programs, keep_memory
from minimoe.training import evaluate

# %%
FAST = os.environ.get("MINIMOE_FAST") == "1"
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores that play {jax.device_count()} devices;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# **Predict before you run.** Replace each `None` by a number. The notebook compares later.

# %%
my_guesses = {
    "writing one text with V4-Flash on eight H800: percent of the chips' arithmetic that is used": None,
    "64 texts at once: how many of 256 experts a layer reads": None,
    "an H800 in place of an H100, 64 texts at once: percent that a step gets longer": None,
}
questions = list(my_guesses)


def compare(question, measured):
    """Sets a prediction beside the measurement; without a prediction it waits for one."""
    if my_guesses[question] is None:
        print(f"fill in your prediction at the top and run both cells again: {question}")
    else:
        print(f"{question}: you predicted {my_guesses[question]:g}, measured {measured:,.4g}")


def table(head, rows, above=""):
    """Shows rows of text as a table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    display(Markdown(above + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)))


# %% [markdown]
# ## A roofline by hand
#
# Take a matrix `W` of 4096 x 4096 numbers in float32 and T rows `x`. The product costs $2 \cdot T \cdot 4096^2$ operations: a
# multiplication and an addition for each number of `W` and each row. It must read `W` once, $4 \cdot 4096^2$ bytes, and the rows
# are small beside it. So it does about **T / 2 operations for each byte**. That ratio is the *intensity* of a program.
#
# For one row, intensity is 0.5. For 64 rows it is 32. Whether that is much depends on the machine. We measure ours: how many
# operations a second at best (a product that fits into its caches), and how many bytes a second it reads (the sum of an array
# that fits into none).

# %%
def seconds_of(run, *inputs, rounds=3 if FAST else 7):
    """The best of some rounds, after one that compiles."""
    jax.block_until_ready(run(*inputs))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        times.append(time.perf_counter() - start)
    return min(times)


square, long = jnp.ones((1024, 1024)), jnp.ones(2**26)  # 4 MiB, and 256 MiB: larger than any cache nearby
peak = max(2 * 1024**3 / seconds_of(jax.jit(jnp.matmul), square, square) for _ in range(3))
bandwidth = max(long.nbytes / seconds_of(jax.jit(jnp.sum), long) for _ in range(3))
print(f"this machine: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
print(f"{peak / bandwidth:.1f} operations in the time of a byte")

# %% [markdown]
# The operations in the time of a byte are the **ridge point**. A program of less intensity waits for memory, whatever the
# processor can do. A program of more intensity waits for arithmetic. (`minimoe doctor` measures the same more carefully, and
# says what is wrong with a set-up.)
#
# ### Exercise: the roofline

# %%
from minimoe.exercises import check, exercises, hint

exercises()["hardware.roofline"]

# %%
def roofline(flops, num_bytes, peak, bandwidth):
    raise NotImplementedError("not written yet: hardware.roofline")


check("hardware.roofline", roofline);

# %% [markdown]
# ## Our layers under the roof
#
# Now three layers, from one token to many: a product with a 4096 x 4096 matrix as above, and two feed-forward layers that do
# **equally much arithmetic for a token**, one dense, one sparse. The sparse one has 32 experts, of which a token chooses two.
#
# Before you look: the sparse layer reads the experts that its tokens chose. For one token that is as much as the dense layer
# reads. For many tokens it is 16 times as much, for the same arithmetic. So where will its points lie?

# %%
sparse_config = MoEConfig(d_model=512, d_expert=1024, num_experts=32, top_k=2)
layers = {  # two experts of width 1024 for a token cost as much arithmetic as one dense layer of width 2048
    "dense layer": SwiGLU(512, 2048, rngs=nnx.Rngs(0)),
    "sparse layer": MoELayer(sparse_config, rngs=nnx.Rngs(0)),
}
big = jnp.ones((4096, 4096))
counts = (1, 4, 16, 64, 256, 1024)
series = {"matrix product": [], "dense layer": [], "sparse layer": []}
for tokens in counts:
    seconds = seconds_of(jax.jit(jnp.matmul), jnp.ones((tokens, 4096)), big)
    flops, moved = 2 * tokens * 4096**2, big.nbytes + 2 * 4 * tokens * 4096
    series["matrix product"].append((flops / moved, flops / seconds))
for name, layer in layers.items():
    graph, state = nnx.split(layer)
    run = jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state)(x))
    for tokens in counts:
        seconds = seconds_of(run, state, jax.random.normal(jax.random.key(tokens), (tokens, 512)))
        awake = cost.expected_distinct_experts(32, 2, tokens) if name == "sparse layer" else 2  # experts that are read
        one = 3 * 512 * 1024  # numbers of an expert; the dense layer is as large as two
        read, flops = 4 * one * awake, 2 * one * 2 * tokens
        series[name].append((flops / (read + 2 * 4 * tokens * 512), flops / seconds))
labels = {"matrix product": [f"T={t}" for t in counts]}
plots.roofline(peak, bandwidth, series, labels, "Figure 1: three layers, from 1 to 1,024 tokens")

# %% [markdown]
# What to see: every curve begins at the left, where the roof is slanted. With one token a layer reads each number once and uses
# it once. The dense layer does about T / 2 operations for a byte, so it passes the ridge point when T is about twice its number.
# The sparse layer does the same arithmetic for a token, and its curve hardly moves to the right at first: **each further token
# wakes further experts**, so bytes grow as fast as operations. It needs many times more tokens to leave the slanted roof.
#
# Points can lie above the slanted roof when the weights fit into the processor's own cache: then memory is not asked. Points far
# below it are the price of what is not a product: choosing, sorting, gathering.
#
# ## Whole steps, predicted and measured
#
# Does a roofline say how long a whole step takes? `minimoe bench predict` asks that of training steps and of decoded tokens. It first
# measures rates on operations that belong to no model, then predicts, and only then looks at the clock. This is a recorded run.

# %%
times = read_record("predicted-times")["rows"]
for kind, what in {"train": "training steps", "decode": "decoded tokens"}.items():
    for key, way in {"predicted_ms": "rates by shape", "peak_roofline_ms": "peak and bandwidth alone"}.items():
        off = [abs(row[key] / row["measured_ms"] - 1) for row in times if row["kind"] == kind]
        print(f"{what}, {way}: median error {np.median(off):.0%} of {len(off)} times")
plots.predicted_times(times, "Recorded on two cores: whole steps, predicted and measured")

# %% [markdown]
# What to see: on the line a prediction is right, in the shade it is off by at most a quarter. Peak and bandwidth alone (crosses)
# promise far too much. With a rate for each shape of product, and for what is no product, training steps (filled) lie in the
# shade. So do more than half of the decoded tokens (open). The others take longer than predicted, most of them in the dense
# models. We do not know why. **Run the command on your machine and see.**
#
# ## How many experts a batch wakes
#
# A token misses an expert with probability $1 - K/E$. B tokens miss it with $(1 - K/E)^B$ if they choose independently. So a layer
# reads $E\,(1 - (1 - K/E)^B)$ experts on average.
#
# ### Exercise: the bytes of a decoding step

# %%
exercises()["hardware.step_bytes"]

# %%
def step_bytes(batch, layers, experts, top_k, expert, dense, cache):
    raise NotImplementedError("not written yet: hardware.step_bytes")


check("hardware.step_bytes", step_bytes);

# %%
flash, h800 = cost.published_model("deepseek-v4-flash"), cost.chip("H800")
assumed = cost.Assumptions(chips=8)
lines = []
for batch in (1, 16, 64, 256, 1024, 4096):
    step = cost.decode_step(flash, h800, batch, 4096, assumed)
    used = step.traffic.flops / (step.chips * h800.peak(step.compute) * step.seconds)  # of all eight chips, idle ones too
    hit = cost.expected_distinct_experts(256, 6, batch)
    lines.append([f"{batch:,}", f"{hit:.0f}", f"{1e3 * step.read:.2f}", f"{1e3 * step.calculate:.3f}", f"{used:.1%}"])
    if batch == 1:
        compare(questions[0], 100 * used)
    if batch == 64:
        compare(questions[1], hit)
head = ["texts at once", "experts read, of 256", "reading, ms", "computing, ms", "of the arithmetic used"]
table(head, lines, "DeepSeek-V4-Flash on eight H800, 4,096 tokens read, by data sheets:")

# %% [markdown]
# Writing text waits for memory at every batch of this table. That is why the three ideas of this course matter for it: sparse
# layers, few bits, and a small cache all **reduce what is read**. Here they come one after the other, as if one H800 could hold
# everything.

# %%
contexts = (4_096, 131_072, 1_048_576)
wide = {"expert_bits": 16, "head_bits": 16, "other_bits": 16, "cache_dtype": "bfloat16"}
ways = {
    "bfloat16": wide,
    "FP8 weights": wide | {"expert_bits": 8, "other_bits": 8},
    "FP4 experts": wide | {"expert_bits": 4.25, "other_bits": 8},
    "FP4 experts, FP8 and FP4 cache": {},
}
lines = []
for batch in (1, 64):
    dense = 2 * flash.params_total / h800.memory_bandwidth
    lines.append([f"{batch}: bfloat16, were it dense, the weights alone", *[f"{1e3 * dense:.1f} ms"] * len(contexts)])
    for name, settings in ways.items():
        one = cost.Assumptions(chips=1, **settings)
        steps = [cost.decode_step(flash, h800, batch, context, one) for context in contexts]
        lines.append([f"{batch}: {name}", *(f"{1e3 * step.read:.1f} ms" for step in steps)])
head = ["texts at once, weights and cache", *(f"{context:,} tokens" for context in contexts)]
table(head, lines, "One H800, were its memory large enough: reading in one step")

# %% [markdown]
# What to see: for a **single** text sparsity divides the reading by about twenty. For 64 texts most experts are awake, and little
# of that is left. Fewer bits help at every batch. The cache hardly counts at 4,096 tokens. At a million tokens and
# 64 texts it is a fifth of everything in bfloat16, and the small formats divide it by three. (Do not multiply this with the
# 9.5 times of lesson 06: that compares bytes kept, V4 with V3.2, and the small formats are part of it.)
#
# ## What the export rules cut
#
# The A800 is an A100 and the H800 an H100 with a slower link between chips. (The H800 also lost most of its float64, which no
# model here uses.)

# %%
def cut(full, less):
    kept = cost.export_cut(cost.chip(full), cost.chip(less))
    changed = {name: share for name, share in kept.items() if share != 1}
    lost = ", ".join(f"{share:.0%} of {name}" for name, share in changed.items())
    return f"of an {full} an {less} keeps {lost}; its other {len(kept) - len(changed)} numbers are equal"


print(cut("A100", "A800"))
print(cut("H100", "H800"))
rows, steps = {}, {}
for name in ("A100", "A800", "H100", "H800", "H20"):
    step = steps[name] = cost.decode_step(flash, cost.chip(name), 64, 4096, assumed)
    rows[name] = {"reading": 1e3 * step.read, "computing": 1e3 * step.calculate, "sending": 1e3 * step.send}
longer = 100 * (steps["H800"].seconds / steps["H100"].seconds - 1)
compare(questions[2], longer)
plots.step_parts(rows, title="Figure 2: V4-Flash writes 64 texts on eight chips, 4,096 tokens read")

# %% [markdown]
# What to see: sending takes longer on the A800 and the H800, and it is still the shortest part. **The cut link does not change this
# step at all**, as long as sending goes on beside reading. The H20, whose *arithmetic* was cut, is the fastest of the five here,
# since its memory is.
#
# Training is another matter. There every expert gets thousands of tokens, so arithmetic decides, and what must be sent must hide
# behind it. A row that travels to an expert costs `3 * D` bytes (FP8 there, bfloat16 back) and buys `6 * D * F` operations. The
# report on V4 states the condition: at most 6,144 operations for a byte of link, for F = 3,072.

# %%
pro = cost.published_model("deepseek-v4-pro")
lines = []
for name, kind in (("A100", "bf16"), ("A800", "bf16"), ("H100", "fp8"), ("H800", "fp8"), ("H20", "fp8")):
    found = cost.communication_bound(pro, cost.chip(name), kind)
    hidden = "yes" if found["chip"] <= found["experts"] else "no: the link decides"
    network = "not verified" if name == "H20" else f"{cost.chip(name).peak(kind) / cost.chip(name).network:,.0f}"
    lines.append([f"{name}, {kind}", f"{found['chip']:,.0f}", hidden, network])
offers = {name: cost.communication_bound(model, h800)["experts"] for name, model in (("V4-Pro", pro), ("V4-Flash", flash))}
table(["chip", "operations in the time of a link byte", "hidden behind V4-Pro's?", "of a network byte"], lines,
      "An expert offers: " + ", ".join(f"{name} {offer:,.0f} operations a byte" for name, offer in offers.items()))

# %% [markdown]
# What to see: inside one machine of eight chips, the experts' arithmetic covers the traffic on an A100, an A800 and an H100. On an
# H800 it does not: its FP8 arithmetic is fast, its link is slow, so there the cut link *would* decide. The A800 lost a third of its
# link and can still hide what is sent. Across machines, over the network, no chip can, and there nothing was cut. What DeepSeek-V3
# did about that comes below: send to few machines.
#
# ## Experts on eight devices
#
# Each device owns two of 16 experts, and an eighth of the tokens. A token must travel to its experts and its result back. Here it
# is by hand: every device fills a box for each expert, `all_to_all` exchanges the boxes, experts work, boxes go back.

# %%
config = MoEConfig(d_model=64, d_expert=96, num_experts=16, top_k=2, score="sigmoid")
layer = MoELayer(config, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(1), (512, 64))
mesh = jax.make_mesh((8,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,))
gate_up, down = layer.experts.gate_up_proj[...], layer.experts.down_proj[...]
expected, routing = layer(x)


@functools.partial(jax.shard_map, mesh=mesh, in_specs=P("expert"), out_specs=P("expert"))
def on_eight_devices(x, experts, weights, gate_up, down):
    box = jax.nn.one_hot(experts, 16) * weights[..., None]  # [T/8, K, E]: how much each expert counts
    chosen = (jax.nn.one_hot(experts, 16).sum(1) > 0).astype(x.dtype)  # [T/8, E]
    boxes = jnp.einsum("te,td->etd", chosen, x)  # a row for every expert and token, zeros where not chosen
    there = jax.lax.all_to_all(boxes, "expert", split_axis=0, concat_axis=1, tiled=True)  # [E/8, T, D]
    gate, up = jnp.split(jnp.einsum("etd,edf->etf", there, gate_up), 2, axis=-1)
    made = jnp.einsum("etf,efd->etd", jax.nn.silu(gate) * up, down)
    back = jax.lax.all_to_all(made, "expert", split_axis=1, concat_axis=0, tiled=True)  # [E, T/8, D]
    return jnp.einsum("tke,etd->td", box, back)


inputs = (x, routing.experts, routing.weights, gate_up, down)
y = jax.jit(on_eight_devices)(*inputs)
print("largest difference from one device:", float(jnp.abs(y - expected).max()), "of", float(jnp.abs(expected).max()))

# %% [markdown]
# Equal, and wasteful: a box is sent for **every** expert and token, also for the 14 experts that the token did not choose. How many
# rows had to travel?
#
# ### Exercise: rows between devices

# %%
exercises()["hardware.rows_sent"]

# %%
def rows_sent(experts, num_experts, devices):
    raise NotImplementedError("not written yet: hardware.rows_sent")


check("hardware.rows_sent", rows_sent);

# %% [markdown]
# The compiled program says what it really exchanges: we add up the operands of its `all-to-all`. A box of zeros costs as much as a
# box with a row.

# %%
def exchanged_bytes(compiled, devices):
    """Bytes that all devices together send to *other* devices in the all-to-alls of a compiled program."""
    return round(devices * parallel.collective_bytes(compiled)["all-to-all"])


compiled = jax.jit(on_eight_devices).lower(*inputs).compile()
found = exchanged_bytes(compiled, 8)
formula = 2 * 16 * 512 * 64 * 4 * 7 / 8  # there and back: E boxes of T rows of D numbers, 7 of 8 to somebody else
needed = cost.rows_between(routing.experts, 16, 8).sum() * 64 * 4 * 2
print(f"counted in the compiled program: {found:,} bytes; by the formula: {formula:,.0f}")
print(f"needed: {needed:,} bytes, so {found / needed:.1f} times as much is sent")

# %% [markdown]
# The library does better. `parallel.on_mesh` deals the experts of any `MoELayer` out. It sends boxes of a fixed size again, since a
# compiled program has fixed shapes, but the size is the mean and a quarter more, rounded up to a multiple of eight. What does not fit travels in a further round.

# %%
eight = parallel.make_mesh("expert=8")
spread = parallel.shard_model(parallel.on_mesh(nnx.merge(*nnx.split(layer)), eight), eight)
graph, state = nnx.split(spread)
run = jax.jit(lambda state, x: nnx.merge(graph, state)(x)[0])
rows = jax.device_put(x, parallel.batch_sharding(eight))
difference = float(jnp.abs(run(state, rows) - expected).max())
print(f"largest difference from one device: {difference:.1e} of {float(jnp.abs(expected).max()):.2f}")
one_round = exchanged_bytes(run.lower(state, rows).compile(), 8)  # further rounds stand in a loop: counted once, by hand
goes_to = jax.nn.one_hot(routing.experts // 2, 8).max(1)  # [T, devices]: 1 where a token has an expert
fullest = int(goes_to.reshape(8, 64, 8).sum(1).max())  # rows of the fullest box
places = parallel.rows_per_device(config, 8, 512 // 8)
rounds = -(-fullest // places)
found = rounds * one_round
mean_rows = 64 * parallel.devices_per_token(config, 8) / 8
print(f"boxes of {places} rows (mean {mean_rows:.1f}), the fullest has {fullest} to send: {rounds} rounds of {one_round:,} bytes")
print(f"{found / needed:.1f} times what is needed; the program by hand sent {formula / needed:.1f} times")

# %% [markdown]
# The library's version sends fuller boxes: less than the program by hand, more than is needed. **The fullest box of all decides
# how many rounds there are**, and with so few tokens one box is easily over the mean. Training with it is one option: `minimoe train
# --mesh data=2,expert=4`.
#
# ## Sending less: the group limit
#
# DeepSeek-V3 chooses experts in two steps. First a token chooses a few *groups*, one group being the experts of one machine.
# Then it chooses experts inside them. So its row travels to few machines. Here are real tokens in the trained `small`, over eight
# devices with two experts each: free choice, and a choice within the best group of four experts, which is two devices. Nobody
# trained `small` for the second way.

# %%
small, tokenizer, model_config = hub.load_pretrained("small")
limited = nnx.merge(*nnx.split(small))
for sparse in sparse_layers(limited):
    sparse.router.config = dataclasses.replace(sparse.router.config, select="group_limited", num_groups=4, top_k_groups=1)
held_out = data.evaluation_documents(data.documents(split="val"), "quick")
tokens = jnp.asarray(data.windows(held_out, tokenizer, 256).tokens[:32])
tables, quality = {}, {}
for name, model in {"free choice": small, "one group of four": limited}.items():
    routings = model(tokens)[1]
    tables[name] = sum(cost.rows_between(routing.experts, 16, 8) for routing in routings)
    quality[name] = evaluate(model, held_out if not FAST else held_out[:6], tokenizer).bits_per_byte
pairs = len(routings) * tokens.size
for name, sent in tables.items():
    print(f"{name}: {sent.sum() / pairs:.2f} rows sent for a token and layer, {quality[name]:.3f} bits per byte")
print(f"if all pairs of experts were equally likely: {parallel.devices_per_token(config, 8) * 7 / 8:.2f} rows sent")
plots.rows_between(tables, title="Figure 3: rows that travel between eight devices, all layers")

# %% [markdown]
# What to see: the limit sends fewer rows, and the diagonal stays empty: what is at home is not sent. Columns that are darker than
# others are **popular experts**: their device receives more, computes longer, and everybody waits for it. That is what balance
# (lesson 03) is for.
#
# The limit has a price in quality here, since `small` was trained without it. DeepSeek-V3 was trained with it. V4 chooses freely
# again: its report hides the sending behind the experts' arithmetic, by the condition of the table above.
#
# ## What a million tokens cost
#
# Time is money, so a roofline is also a price. Every number that was assumed is printed with it.

# %%
lines, assumed = [], cost.Assumptions(chips=64)
for name in ("deepseek-v3.2", "deepseek-v4-flash", "deepseek-v4-pro"):
    cells = []
    for texts, context in ((1, 4_096), (64, 4_096), (64, 131_072), (64, 1_048_576)):
        step = cost.decode_step(cost.published_model(name), h800, texts, context, assumed)
        cells.append(f"{cost.dollars_per_million(step, assumed):,.2f}")
    lines.append([name, *cells])
head = ["64 H800", "one text, 4,096 tokens read", "64 texts", "64 texts, 131,072 read", "64 texts, 1,048,576 read"]
table(head, lines, "Dollars for a million tokens written, at best:")
print(f"assumed: {assumed.dollars_per_hour} dollars for an hour of a chip, all of it busy, every peak reached")
v3 = cost.reported_training()
print(f"training of V3, as reported: {v3.total / 1e6:.3f} million hours, {v3.dollars / 1e6:.3f} million dollars")
print("training of V4: nothing is published")

# %% [markdown]
# What to see: one text alone costs many times as much as one of 64. V4-Flash is cheaper than V3.2 everywhere. V4-Pro has more
# weights to read than V3.2, so at short contexts it is dearer, at 131,072 tokens too; at a million its small cache makes it a
# little cheaper, but V3.2 was made for 163,840 tokens at most. All prices are lower
# bounds, not quotations: no kernel reaches every peak.
#
# ## Verdicts

# %%
def effect(full, less):
    return cost.export_effect(flash, cost.chip(full), cost.chip(less), 64, 4096, cost.Assumptions(chips=8))


effects = [effect("A100", "A800"), effect("H100", "H800")]
slower = ", ".join(f"{e.cut} {e.slower['step']:.2f} times" for e in effects)
sends = ", ".join(f"{e.cut} {e.slower['send']:.2f} times" for e in effects)
needs, offers = cost.communication_bound(pro, h800, "fp8").values()
a800_needs = cost.communication_bound(pro, cost.chip("A800"), "bf16")["chip"]
plots.verdict(
    claim='"Viable on restricted A800 and H800 chips."',
    means="The cut leaves decoding and training about as fast as on the chips that were not cut.",
    measured=f"By data sheets, V4-Flash, 64 texts on eight chips: the step takes {slower} as long as on the full chip; its "
    f"sending alone {sends}. In training an expert of V4-Pro offers {offers:,.0f} operations a byte. To hide the link inside a machine an "
    f"A800 needs {a800_needs:,.0f} (bfloat16), an H800 {needs:,.0f} (FP8).",
    says=ledger()["restricted-chips"].verdict,
    would_change="A step measured on both chips. No such chip was at hand: all times here are by formula.",
)

# %%
def read_gb(texts):
    traffic = cost.decode_traffic(flash, texts, 4096)
    return (traffic.dense_bytes + traffic.expert_bytes) / 1e9


plots.verdict(
    claim='"Cheaper to operate."',
    means=ledger()["cheaper"].means,
    measured=f"A dense model of V4-Flash's size would read {2 * flash.params_total / 1e9:,.0f} GB of weights in bfloat16 "
    f"for each step. V4-Flash as published reads {read_gb(1):,.1f} GB for one text and {read_gb(64):,.0f} GB for 64 together. "
    "Against V3.2: the table above.",
    says=ledger()["cheaper"].verdict,
    would_change="What somebody paid, for equal answers on equal chips.",
)

# %% [markdown]
# ## What to distrust
#
# - **Data sheets.** Every time of a chip here is a quotient of two numbers from a data sheet. Real kernels reach less, and not
#   equally for all parts.
# - **Eight devices that are one processor.** They show that the program is right and what it sends. They show nothing about speed.
# - **Even routing.** The formula for experts that are read assumes that all are equally likely. Lesson 01 sets it beside real
#   routing.
# - **One layout.** Attention on every chip and experts divided is one way of many to serve a model.

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
