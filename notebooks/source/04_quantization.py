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
# # 04 · Quantization: the same model in fewer bits
#
# A weight in float32 takes 32 bits. How many does it need? DeepSeek-V4's experts are stored in a little over four. This
# lesson takes numbers apart, rounds them by hand, then a trained model, and asks three things of every format: how many
# bytes, how much quality, and **is it faster or only smaller?**
#
# | | |
# | --- | --- |
# | **You should know** | notebook 00, or: what a router and an expert are; what bits per byte measure |
# | **You will be able to** | quantize a block by hand in int8, FP8 and FP4; choose who shares a scale; quantize a model with one call, weigh its file and score it; say why the router is left alone; train through a rounding; name formats that save memory and no time |
# | **Time** | about four and a half minutes on two CPU cores, under 80 seconds with `MINIMOE_FAST=1` (then nothing has learnt anything, and qualities mean nothing) |

# %%
import os
import platform
import sys
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import minimoe
from minimoe import ModelConfig, hub, plots, quant
from minimoe.plots import numbers
from minimoe.plots import quantization as figures
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 12 if FAST else 240
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; one run of {STEPS} steps and a branch of it;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# "FP8 and INT8, near-lossless, a smaller footprint": near-lossless *measured how*, smaller *by how much*, and on which
# machine does it also save time?
#
# **Predict before you run.** Your guesses come back beside the numbers.

# %%
my_guesses = {
    "int8: bits per byte, relative change": 0.005,
    "experts in FP4: bits per byte, relative change": 0.05,
    "share of expert choices that change if the router alone is FP4": 0.05,
    "8 rows times a 4096 x 4096 matrix, int8 on both sides: times as fast as float32": 4.0,
    "the same with int8 weights decoded first: times as fast as float32": 1.5,
}

# %% [markdown]
# ## Five numbers by hand
#
# Four bits, so whole numbers from -7 to 7 (-8 would have no positive partner). One scale for all five: divide by it,
# round, multiply again. On paper: the scale, the five codes, the five values that come back. Which number suffers most,
# relative to itself? Then give the last number a scale of its own and do it again.

# %%
x = np.array([0.31, -0.12, 0.05, -0.02, 1.40])


def by_hand(x):
    scale = np.abs(x).max() / 7
    codes = np.round(x / scale)
    return scale, codes.astype(int), codes * scale


scale, codes, back = by_hand(x)
small_scale, small_codes, small_back = by_hand(x[:4])
print(f"one scale  {scale:.3f}: codes {codes} -> {back.round(3)}")
print(f"two scales {small_scale:.3f} and {x[4] / 7:.3f}: codes {small_codes} and [7] -> {small_back.round(3)} and [{x[4]}]")
steps = np.arange(-7, 8)
ways = {"one scale": (steps * scale, back)}
ways["the last one apart"] = (np.append(steps * small_scale, x[4]), np.append(small_back, x[4]))
figures.rounding(x, ways, "Figure 1: five numbers, 15 codes")

# %% [markdown]
# > **Key observation.** One large number sets the step for everybody. The small ones become 0: not slightly wrong, gone.
# > Nothing about the format changed between the two rows; only *who shares a scale*.
#
# ## The formula
#
# $$q_i=\text{round}\!\left(\frac{x_i}{s}\right),\qquad s=\frac{\max_j|x_j|}{2^{N-1}-1},\qquad \hat x_i=s\,q_i$$
#
# (SmoothQuant, arXiv 2211.10438, equation 1; the name of this $s$ is *absmax*.) With integers the error is at most
# $s/2$, whatever $x_i$ is. In a product, scales of rows and columns leave the sum, and what remains is integers:
#
# $$y_{to}=s^x_t\,s^w_o\sum_i q^x_{ti}\,q^w_{oi}$$
#
# (the same paper, equation 2). A scale that changes *along i* does not leave the sum. Remember that for later. The library:

# %%
q = quant.quantize(jnp.asarray(x[None], jnp.float32), quant.Spec("int4", quant.PerTensor()))
print("packed codes", q.codes, " scale", q.scale, f" {q.bits} bits for 5 values, {q.bits_per_value} each")
print("back        ", q.dequantize().round(3))
print("five int4 codes take", q.codes.nbytes, "bytes here: two a byte, and half a byte is left over")

# %% [markdown]
# Look at the bits: the codes are 4 bits each, but the one float32 scale costs more than all five. A scale is only cheap
# if many values share it, and only good if few do. The whole subject is that bargain.
#
# ## Number lines
#
# Eight bits give 256 codes and four give 16. A format says where they lie. Integers are evenly spaced. Floating point
# (`e4m3`: 4 bits of exponent, 3 of mantissa) is dense near zero. First stretched to the same largest value, as scaling
# does:

# %%
names = ["int8", "fp8_e4m3", "fp8_e5m2", "int4", "fp4_e2m1", "nf4"]
numbers.number_lines(names, title="Figure 2: every value of six formats, scaled alike")

# %%
for name in names:
    f = quant.get_format(name)
    values = f.values()
    near = np.sum(np.abs(values) <= f.max / 10)
    print(f"{name:9} {len(values):3} values, {near:3} of them within a tenth of the largest; "
          f"largest {f.max:g}, smallest {f.smallest:.3g}")
reach = ["int8", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "ue8m0"]
numbers.number_lines(reach, log=True, title="Figure 3: positive values, unscaled")

# %% [markdown]
# > **Key observation.** int8 spends most of its codes on large values, FP8 on small ones. An integer's *absolute* error is
# > constant, a float's *relative* error is (at most 1/16 for e4m3, until it runs out of exponents). Which is better depends
# > on the numbers: outliers favour floats, a flat range favours integers. The last row has nothing but exponents. It is
# > used for scales.
#
# ## Who shares a scale?
#
# A weight matrix, output channels as rows, with **one** planted outlier; all ways in int8. Every pair of brackets is
# "shape of the matrix → shape of its scales".

# %%
rows, columns = 48, 96
plain = 0.02 * jax.random.normal(jax.random.key(0), (rows, columns))
weight = plain.at[20, 40].set(1.0)  # fifty standard deviations
shapes = {"tensor": quant.PerTensor(), "block 16 x 32": quant.Block(16, 32), "row": quant.PerChannel(),
          "group of 32": quant.Group(32), "group of 8": quant.Group(8)}  # fmt: skip
found = {name: quant.quantize(weight, quant.Spec("int8", shape)) for name, shape in shapes.items()}
for name, q in found.items():
    rest = quant.sqnr_db(plain.at[20, 40].set(0.0), q.dequantize().at[20, 40].set(0.0))
    print(f"{name:14} {weight.shape} -> {q.scale.shape!s:9} {q.bits_per_value:5.2f} bits a value, "
          f"{rest:5.1f} dB without the outlier itself")

# %%
answers = {name: np.asarray(q.dequantize()) for name, q in found.items()}
numbers.granularity_errors(np.asarray(weight), answers, "Figure 4: one outlier weight, int8 (dB with the outlier)")

# %% [markdown]
# The decibels in the titles count the outlier itself, which always comes back almost exactly; the printed ones leave it
# out. Decibels are the power of the signal over that of the error, $10\log_{10}$ of it: 20 dB is an error of a tenth.
#
# ### Activations are worse
#
# In trained language models a few *channels* of the activations are loud for every token. Rows are tokens now, and one
# loud channel spoils all of them:

# %%
from minimoe.quant.smooth import smoothing_factors

loud = jax.random.normal(jax.random.key(1), (rows, columns)).at[:, 40].multiply(50.0)
factors = smoothing_factors(np.abs(np.asarray(loud)).max(axis=0), np.full(columns, 0.05))

def int8(values, shape):
    return quant.quantize(values, quant.Spec("int8", shape)).dequantize()

answers = {
    "tensor": int8(loud, quant.PerTensor()),
    "token": int8(loud, quant.PerToken()),
    "tile of 32": int8(loud, quant.Tile(32)),
    "channel": int8(loud.T, quant.PerChannel()).T,
    "smoothed, token": int8(loud / factors, quant.PerToken()) * factors,
}
quiet = jnp.arange(columns) != 40
for name, values in answers.items():
    print(f"{name:16} {quant.sqnr_db(loud * quiet, values * quiet):5.1f} dB on the quiet channels")

# %%
answers = {name: np.asarray(values) for name, values in answers.items()}
numbers.granularity_errors(np.asarray(loud), answers, "Figure 5: one loud channel, int8")

# %% [markdown]
# > **Key observation.** A scale a token does not help, because every token has the loud channel. A scale a *channel* would,
# > but it runs along the axis that is summed and cannot leave the sum: no integer matmul with it. The last picture is
# > SmoothQuant's way out (equation 4): divide the channel by $s_j=\max|X_j|^{\alpha}/\max|W_j|^{1-\alpha}$ and multiply the
# > weights that read it. DeepSeek's way is small tiles, whose partial sums are scaled one by one. Both cost something.
#
# ### Error against bits
#
# Now formats and granularities together, with everything counted: bits of codes *and* scales. Three arrays: independent
# normal numbers, numbers with heavy tails, and the activations with the loud channel.

# %%
arrays = {
    "normal": jax.random.normal(jax.random.key(2), (256, 1024)),
    "heavy tails": jax.random.t(jax.random.key(3), 3.0, (256, 1024)),
    "a loud channel": jax.random.normal(jax.random.key(4), (256, 1024)).at[:, 40].multiply(50.0),
}
shown = ("int8_channel", "mxfp8", "fp8_tile", "int4_group32", "nf4_group64", "nvfp4", "mxfp4", "mxfp4_ocp")
specs = {name: quant.SPECS[name] for name in shown[:: 2 if FAST else 1]}
specs["int4, a scale a row"] = quant.Spec("int4", quant.PerChannel())
panels = {
    label: {
        name: (q.bits_per_value, float(quant.sqnr_db(array, q.dequantize())))
        for name, q in ((name, quant.quantize(array, spec)) for name, spec in specs.items())
    }
    for label, array in arrays.items()
}
figures.error_against_bits(panels, "Figure 6: what the bits buy")

# %%
for name in specs:
    decibels = [f"{label} {row[name][1]:5.1f} dB" for label, row in panels.items()]
    print(f"{name:20} {panels['normal'][name][0]:5.2f} bits", *decibels, sep="   ")

# %% [markdown]
# Every bit halves the step of an integer: $20\log_{10}2\approx 6.02$ dB. The dashed line is Shannon's limit for normal
# numbers, $D=\sigma^2 2^{-2R}$, which no quantizer passes (other arrays have other limits).
#
# > **Key observation.** At 8 bits int8 is ahead of FP8 on well-behaved numbers and behind when one row holds large and
# > small ones. At 4 bits the block decides, not the code: a scale a row is useless with heavy tails.
#
# ## A scale that is a power of two
#
# A byte for each 32 values is a cheap scale, if the byte is an exponent (`ue8m0`). But absmax rarely is a power of two.
# Round the scale **up** and the largest value fits with room to spare; take the exponent of absmax, as the MX
# specification suggests (section 6.3), and what lies between 6 and 8 times the scale **saturates**. DeepSeek rounds up:
#
# $$s_\text{up}=2^{\lceil\log_2(a/6)\rceil},\qquad s_\text{OCP}=2^{\lfloor\log_2 a\rfloor-2},\qquad a=\max_j|x_j|$$
#
# One block of eight by hand, in FP4, whose magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4 and 6:

# %%
block = np.array([7.4, 5.2, -2.6, 1.2, 0.7, -0.4, 0.3, 0.1], dtype=np.float32)
answers = {}
for rule in ("deepseek", "ocp"):
    s = float(quant.ue8m0_scale(jnp.asarray(np.abs(block).max()), 6.0, rule))
    q = quant.quantize(jnp.asarray(block), quant.Spec("fp4_e2m1", quant.Group(8), "ue8m0", rule))
    answers[rule] = np.asarray(q.dequantize())
    error = np.abs(answers[rule] - block)
    print(f"{rule:9} scale {s:g}, stored as the byte {q.scale[0]}; largest of x/s {np.abs(block).max() / s:.2f}")
    print(f"{'':9} back {answers[rule]}")
    print(f"{'':9} error of the largest {error[0]:.2f}, of the other seven together {error[1:].sum():.2f}")
figures.one_block(block, answers, "Figure 7: rounding the scale up, or saturating")

# %%
for label, array in arrays.items():
    both = [quant.quantize(array, spec) for spec in (quant.MXFP4, quant.MXFP4_OCP)]
    cut = np.mean(np.asarray(both[1].scale) != np.asarray(both[0].scale))
    up, ocp = (float(quant.sqnr_db(array, q.dequantize())) for q in both)
    print(f"{label:15} rounded up {up:.2f} dB, OCP {ocp:.2f} dB; the rules differ in {cut:.0%} of the blocks")

# %% [markdown]
# > **Key observation.** Up: nothing saturates, and the small values of the block lose a bit. OCP: the small ones keep it,
# > and the largest is cut. Where the two differ, decide by what the largest values are worth to you.
#
# ## Be the designer
#
# Heavy-tailed numbers again. In a live notebook choose the format and how many values share a float32 scale; on the web
# you see one choice. Which format gains most from small blocks? Which size would you pay for (a scale is 32 bits)?

# %%
sizes = [8, 32, 128] if FAST else [8, 16, 32, 64, 128, 256, 1024]
tails = arrays["heavy tails"]


def decibels(format, size):
    return float(quant.sqnr_db(tails, quant.quantize(tails, quant.Spec(format, quant.Group(size))).dequantize()))


six = ("int8", "fp8_e4m3", "fp8_e5m2", "int4", "fp4_e2m1", "nf4")
by_block = {name: [decibels(name, size) for size in sizes] for name in six}


def board(format, size, name):
    bits = quant.get_format(format).bits + 32 / size
    title = f"{name}: {format}, {size} to a scale: {bits:.2f} bits, {by_block[format][sizes.index(size)]:.1f} dB"
    return figures.error_by_block(sizes, by_block, (format, size), title)


# %%
try:
    import ipywidgets
except ImportError:  # pip install "minimoe[notebooks]" brings it
    ipywidgets = None
live = "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in globals() or "google.colab" in sys.modules
if live and ipywidgets is not None:  # Jupyter, VS Code or Colab: someone is there to move a slider
    formats = ipywidgets.Dropdown(options=list(by_block), value="fp4_e2m1")
    slider = ipywidgets.SelectionSlider(options=sizes, value=32, continuous_update=False)  # redraw on release
    ipywidgets.interact(lambda format, size: board(format, size, "Your choice"), format=formats, size=slider)
board("fp4_e2m1", 32, "Figure 8")

# %% [markdown]
# ## A model to quantize
#
# Enough of random numbers. We train nano (E = 8, K = 2, one shared expert) on the bundled text; it takes a minute or so.
# Two thirds of the way we keep a copy of model and optimiser, for an experiment further down.

# %%
from minimoe.data import documents, load_tokenizer, training_data
from minimoe.training import Recipe, RunConfig, init_training, train_step

tokenizer, corpus = load_tokenizer(), documents()
data = training_data(corpus, tokenizer)
nano = ModelConfig.preset("nano")
if FAST:
    nano = nano.replace(num_layers=2, context_length=64)
recipe = Recipe.preset("nano", steps=STEPS)


def run_steps(model, optimizer, first, last, transform=None):
    """Trains from step ``first`` to ``last``; returns the losses."""
    started, losses = time.monotonic(), []
    for step in range(first, last):
        batch = data.batch(recipe.seed, step, recipe.batch_size, nano.context_length)
        given = [jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.where)]
        key = jax.random.fold_in(jax.random.key(recipe.seed), step)
        metrics = train_step(model, optimizer, *given, key, recipe=recipe, transform_params=transform)
        losses.append(float(metrics.loss))
        if (step + 1) % (STEPS // 6) == 0:
            left = (time.monotonic() - started) / len(losses) * (last - step - 1)
            print(f"step {step + 1}/{STEPS}  loss {losses[-1]:.2f}  ETA {left:.0f} s", flush=True)
    return losses


# %%
def copied(pair):
    graphdef, state = nnx.split(pair)
    return nnx.merge(graphdef, jax.tree.map(jnp.copy, state))


BRANCH = 2 * STEPS // 3
model, optimizer = init_training(RunConfig(nano, recipe, {}, tokenizer.name))
losses = run_steps(model, optimizer, 0, BRANCH)
branch = copied((model, optimizer))
losses += run_steps(model, optimizer, BRANCH, STEPS)

# %% [markdown]
# What we score with: the **quick** protocol (about 40,000 tokens of held-out text, every domain alike), and where many
# variants are compared, a **part** of it: the first 3,000 characters of each domain.

# %%
import dataclasses

from minimoe.data import evaluation_documents
from minimoe.training import evaluate

quick = evaluation_documents(corpus, "quick")
first = {document.domain: document for document in reversed(quick)}
part = [dataclasses.replace(document, text=document.text[: 800 if FAST else 3000]) for document in first.values()]
scored = part if FAST else quick


def bits(candidate, text=part):
    return evaluate(candidate, text, tokenizer).bits_per_byte


before = bits(model, scored)
print(f"float32: {before:.3f} bits per byte ({'part' if FAST else 'quick protocol'}), {bits(model):.3f} on the part")

# %% [markdown]
# ## One call, and what lies on the disk
#
# A **recipe** is a list of rules: a pattern on the path of a module, and what becomes of its weights and of its inputs.
# `quantize_model` returns a model with other modules in it, which hold codes; nothing is kept in float beside them.

# %%
small = quant.quantize_model(model, "mxfp4")
for row in quant.size_report(small).rows[:9]:
    print(f"{row.path:42} {row.shape!s:16} {row.format:9} {row.bits_per_value:6.2f} bits a value {row.bytes:8,} bytes")
for name, r in quant.RECIPES.items():
    print(f"{name:10} {r.doc}")

# %% [markdown]
# Believe no size that is computed only. So save each model and ask the file system. The claim is that the file has the
# logical bits, packed, within 3%.

# %%
import tempfile
from pathlib import Path


def file_bytes(candidate):
    with tempfile.TemporaryDirectory() as folder:
        hub.save(candidate, Path(folder) / "model")
        return os.path.getsize(Path(folder) / "model" / "model.safetensors")


names = ["int8", "mxfp4"] if FAST else ["int8", "int8-w8a8", "int4", "fp8", "mxfp4", "nvfp4", "v4"]
recipes = {"bfloat16": quant.QuantRecipe("bfloat16", (), rest="bfloat16")} | {name: quant.get_recipe(name) for name in names}
models = {"float32": model} | {name: quant.quantize_model(model, recipe) for name, recipe in recipes.items()}
on_disk = {name: file_bytes(candidate) for name, candidate in models.items()}
for name, size in on_disk.items():
    report = quant.size_report(models[name])
    print(f"{name:10} logical {report.bytes:9,}, on disk {size:9,} bytes ({size / report.bytes - 1:+.2%}); "
          f"{report.bits_per_value:5.2f} bits a value, {report.bfloat16_bytes / report.bytes:.2f}x smaller than bfloat16")
    assert abs(size / report.bytes - 1) < 0.03

# %%
forms = ("bfloat16", "int8", "mxfp4") if FAST else ("bfloat16", "int8", "mxfp4", "v4")
by_path = {name: {row.path: row.bytes for row in quant.size_report(models[name]).rows} for name in forms}
plots.bytes_by_part(by_path, "Figure 9: where the bytes of nano are")

# %% [markdown]
# > **Key observation.** "FP4" is a statement about the experts. What the recipe leaves in float32 soon is most of the
# > file: in a model as small as nano the embedding and the attention weigh a lot. In V4-Pro the experts are nearly
# > everything (lesson 01). The ratio of bytes does not transfer between sizes.
#
# ### Fake quantization
#
# Many libraries round the weights and keep them in float: *fake* quantization. The answers are those of the real thing,
# the bytes are not. We use it below as a shortcut, openly, because a float model with other values needs no new
# compilation:

# %%
from minimoe.quant.qat import qat_transform


def rounded(source, recipe):
    """``source`` with its weights rounded as the recipe says, in float32: fake quantization, activations left alone."""
    graphdef, params, rest = nnx.split(source, nnx.Param, ...)
    return nnx.merge(graphdef, qat_transform(source, recipe)(params), rest)


fake = rounded(model, "mxfp4")
print(f"on disk: real {on_disk['mxfp4']:,} bytes, fake {file_bytes(fake):,}, not rounded at all {on_disk['float32']:,}")
fake_bits = bits(fake, scored)

# %% [markdown]
# ## Quality against size
#
# Our nano by recipe, scored on held-out text. Nothing is trained or calibrated: plain rounding to nearest.

# %%
quality = {"float32": before} | {name: bits(models[name], scored) for name in models if name != "float32"}
for name, value in quality.items():
    print(f"{name:10} {value:.4f} bits per byte, {value / before - 1:+.2%}, {on_disk[name] / 1e6:.2f} MB")
guessed = list(my_guesses.values())
print(f"mxfp4, real and fake: {quality['mxfp4']:.6f} and {fake_bits:.6f}")
print(f"int8 {quality['int8'] / before - 1:+.2%}, you guessed {guessed[0]:+.1%}; "
      f"mxfp4 {quality['mxfp4'] / before - 1:+.2%}, you guessed {guessed[1]:+.1%}")
points = {name: (on_disk[name] / 1e6, value) for name, value in quality.items()}
figures.quality_against_size(points, "megabytes on disk", "Figure 10: nano, a few minutes old", reference="float32")

# %% [markdown]
# A model of a few hundred steps has learnt little, and rough weights hurt it little: a well-trained one has more to lose.
# So here is the same picture, with all recipes, for `small` after an hour of training. It is **recorded**, not computed
# here: `minimoe/records/quant-recipes.json`, made by `minimoe experiments run quant-recipes`, on the quick text or on all
# validation text, as the figure says.

# %%
from minimoe.experiments import read_record

record = read_record("quant-recipes")
protocol = record["protocol"]  # the fullest by which every recipe was scored
after = {name: row[protocol]["relative_change"] for name, row in record["recipes"].items()}
print(f"small, {record['float32'][protocol]['bits_per_byte']:.4f} bits per byte in float32 ({protocol}); change by recipe:")
print(", ".join(f"{name} {change:+.2%}" for name, change in after.items()))
whole = {name: row["full"]["relative_change"] for name, row in record["recipes"].items() if "full" in row}
if whole:
    print("on all validation text:", ", ".join(f"{name} {change:+.2%}" for name, change in whole.items()))
recorded = figures.recipe_points(record, protocol)
title = f"Figure 11: recorded, small, {protocol} protocol"
figures.quality_against_size(recorded, "megabytes on disk", title, "float32")

# %%
worst = {}
for name, row in record["recipes"].items():
    domain, change = max(row[protocol]["per_domain_relative_change"].items(), key=lambda item: item[1])
    worst[name] = change
    print(f"{name:22} mean {after[name]:+.2%}, worst domain {change:+.2%} ({domain})")
eight = [name for name in ("int8", "int8-w8a8", "fp8", "mxfp8") if name in worst]
four = [name for name in ("int4", "mxfp4", "nvfp4", "v4") if name in worst]
for label, group in (("8 bits", eight), ("4 bits", four)):
    print(f"{label}: mean at most {max(after[name] for name in group):+.2%}, "
          f"any domain at most {max(worst[name] for name in group):+.2%}")
for name in ("int4", "mxfp4"):
    print(f"{name}: {after[name]:+.2%}, calibrated with GPTQ {after[f'{name}+gptq']:+.2%}")
figures.recorded_recipes(record, protocol, f"Figure 12: recorded, small, {protocol} protocol")

# %% [markdown]
# > **Key observation.** "Near-lossless" is a statement with a number in it, of one model, on one text; the last lines are
# > ours. The mean hides who pays: look at the dots. Whoever reports one number should report the worst domain too.
#
# ## Which part suffers?
#
# Round one part at a time to FP4 and score the rest in float32. (`minimoe.quant.sensitivity.layer_sensitivity` does this
# with real quantized modules; the shortcut gives the same numbers.)

# %%
kinds = {"attention": "attention", "shared expert": r"ffn\.shared", "routed experts": r"ffn\.experts"}
floor = bits(model)


def cost_of(pattern):
    rule = quant.Rule(pattern, quant.MXFP4)
    return bits(rounded(model, quant.QuantRecipe("part", (rule,)))) - floor


losses_of = {
    kind: np.array([cost_of(rf"^layers\.{layer}\.{path}") for layer in range(1 if FAST else nano.num_layers)])
    for kind, path in kinds.items()
}
losses_of["embedding"] = np.array([cost_of("^embed$")])
figures.sensitivity_map(losses_of, "Figure 13: bits per byte lost to FP4, one part at a time")

# %%
from minimoe.plots.model_bytes import part_of

for kind, values in losses_of.items():
    held = sum(row.bytes for row in quant.size_report(model).rows if part_of(row.path) == kind)
    saved = held * (1 - 4.25 / 32) / 1e6
    print(f"{kind:14} costs {values.sum():+.4f} bits per byte in all, saves {saved:.2f} MB: "
          f"{1000 * values.sum() / saved:+.2f} thousandths a megabyte")

# %% [markdown]
# > **Key observation.** Most of the bytes are in the routed experts, and they give them up almost for free: an expert
# > answers one token in four, and rarely alone. The embedding is used by every token, twice (it is the output head too).
# > V4 puts its FP4 where the bytes are, and leaves embedding and head in bfloat16.
#
# ## Why the router stays in float32
#
# All recipes leave the router alone. It is tiny, so there is nothing to gain; and its error is of another kind. A weight
# that is a little wrong makes an output a little wrong. A *choice* is right or wrong: the other expert answers. Count the
# changed choices, with the router alone rounded, and with everything else rounded and the router exact:

# %%
from minimoe.data import windows

rows_of = quant.size_report(model).rows
share = sum(row.bytes for row in rows_of if ".router." in row.path) / sum(row.bytes for row in rows_of)
print(f"the routers are {share:.2%} of the bytes")
cut = windows(part, tokenizer, nano.context_length)
some = {"tokens": jnp.asarray(cut.tokens[::2]), "where": jnp.asarray(cut.where[::2])}
changed, costs = {}, {}
for name, spec in {"int8": quant.INT8_CHANNEL, "fp8": quant.MXFP8, "fp4": quant.MXFP4}.items():
    if FAST and name == "fp8":
        continue
    targets = {"router alone": "router$", "all but the router": "(embed|experts|_proj)$"}
    variants = {who: rounded(model, quant.QuantRecipe(who, (quant.Rule(path, spec),))) for who, path in targets.items()}
    changed[name] = {who: quant.routing_changes(model, m, **some) for who, m in variants.items()}
    costs[name] = {who: bits(m) - floor for who, m in variants.items()}
    print(name, {who: f"{c:.1%} of the choices, {costs[name][who]:+.4f} bits per byte" for who, c in changed[name].items()})
print(f"FP4 router: {changed['fp4']['router alone']:.1%} of the choices changed, you guessed {guessed[2]:.0%}")
both = {what: record["recipes"][name] for what, name in {"routers alone": "router-fp4_e2m1", "all routed experts": "mxfp4"}.items()}
for what, row in both.items():
    print(f"recorded, small, {protocol}: {what} in FP4: {row['routing_changed']:.1%} of the choices, {row[protocol]['relative_change']:+.2%}")
figures.compared(changed, "expert choices that changed", "Figure 14: who changes the choices?", "{:.1%}".format)

# %% [markdown]
# > **Key observation.** A five-hundredth of the bytes changes about as many choices as all the others together. A changed
# > choice is usually between two experts that scored almost alike, so it costs less than it sounds. But compare the two
# > recorded lines: kilobytes of router against megabytes of experts. To round the router is to pay for nothing.
#
# ## An expert that few tokens reach
#
# Rounding to nearest treats all weights alike. **GPTQ** (arXiv 2210.17323) asks what the inputs look like, on some
# calibration text, and lets later weights make up for the error of earlier ones. In a mixture of experts an expert sees
# only *its* tokens, and unpopular experts see few. First the inputs: does our model have loud channels?

# %%
from minimoe.quant.calibrate import collect
from minimoe.quant.sensitivity import expert_calibration_experiment


def calibration_text(start, count):
    return [data.batch(7, step, 1, 64).tokens for step in range(start, start + count)]


calibrations = [collect(model, calibration_text(0, count)) for count in ((1, 4) if FAST else (1, 4, 16, 64))]
held_out = collect(model, calibration_text(1000, 8 if FAST else 64))
for layer in range(nano.num_layers):
    loudest = held_out[f"layers.{layer}.attention.q_proj"].absmax
    print(f"layer {layer}: loudest input channel of attention {loudest.max() / np.median(loudest):.1f} times the median one")

# %%
errors = expert_calibration_experiment(model, calibrations, held_out, quant.INT4_GROUP32, layers=[1])
seen = [e for e in errors if e.rows > 0 and np.isfinite(e.gptq)]
reached = np.array([e.rows for e in seen])
points = {
    "its own tokens": (reached, np.array([e.gptq / e.plain for e in seen])),
    "5% of everybody's added": (reached, np.array([e.shrunk / e.plain for e in seen])),
}
for low, high in ((1, 16), (16, 128), (128, 10**9)):
    here = (reached >= low) & (reached < high)
    if here.any():
        print(f"{low:3} rows and more: {here.sum():2} cases, error over plain rounding",
              *(f"{name} {ratios[here].mean():.2f}" for name, (_, ratios) in points.items()), sep="  ")
figures.gain_by_rows(points, "Figure 15: GPTQ in int4, one dot an expert's matrix")

# %% [markdown]
# > **Key observation.** With a handful of rows GPTQ learns them by heart; on new text it helps little, and can be worse
# > than not calibrating at all (dots above the line). With many rows it is clearly better than rounding. A cheap remedy is
# > to mix a little of everybody's text into the statistics of each expert. *Check the rows per expert before you trust a
# > calibrated MoE.*
#
# ## The cache in fewer bits
#
# At long contexts the keys and values of earlier tokens outweigh the model (lesson 06). They are rounded when they
# arrive, one row of head width at a time. Bytes of one more token, in all layers, against quality:

# %%
from minimoe.quant.kv import cache_bytes_per_token, kv_cache, through_cache

names = ("bf16", "int4") if FAST else ("bf16", "fp8", "int8", "int4")
caches = {name: cache_bytes_per_token(nano, name) for name in names}
points = {name: (float(size), bits(through_cache(model, kv_cache(name)))) for name, size in caches.items()}
for name, (size, value) in points.items():
    print(f"{name:5} {size:5.0f} bytes a token, {size / caches['bf16']:.0%} of bfloat16; {value - floor:+.5f} bits per byte")
for name, row in record["caches"].items():
    print(f"recorded, small, quick protocol: {name:8} {row['bytes_per_token']:5} bytes a token, {row['relative_change']:+.3%}")
figures.quality_against_size(points, "bytes of cache for one token", "Figure 16: the cache of nano (the part)")

# %% [markdown]
# With heads of 32 numbers, a float32 scale a row costs a whole bit a value. V4 stores 448 numbers in FP8 with a one-byte
# scale for 64 and keeps the 64 that carry the position in bfloat16.
#
# ## The clock
#
# Smaller is not faster. On this CPU, one matrix of 4096 x 4096 and a few rows, in turn: float32; int8 on both sides
# (rows are rounded when they come); int8 weights that are decoded first and then multiplied in float32. And one row of
# int8 twice: as it is, and padded with zeros to eight.

# %%
from minimoe.bench import alternate, ratio
from minimoe.quant.matmul import int8_matmul, qmatmul

WIDTH, COUNTS = (1024, (1, 8)) if FAST else (4096, (1, 8, 64))
kernel = jax.random.normal(jax.random.key(5), (WIDTH, WIDTH)) / WIDTH**0.5
packed = quant.quantize(kernel.T, quant.INT8_CHANNEL)
bare = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32))
kinds_of = {"float32": (jax.jit(jnp.matmul), kernel), "int8 both sides": (jax.jit(int8_matmul), packed),
            "int8 decoded first": (jax.jit(qmatmul), packed)}  # fmt: skip


def clock(count):
    rows = jax.random.normal(jax.random.key(6), (count, WIDTH))
    codes = quant.quantize(rows, quant.INT8_TOKEN).codes
    calls = {name: lambda f=f, w=w: f(rows, w).block_until_ready() for name, (f, w) in kinds_of.items()}
    if count == 1:
        calls["int8, row not padded"] = lambda: bare(codes, packed.codes).block_until_ready()
    return alternate(calls, rounds=3 if FAST else 9, warmup=2, pause=0.01)


times = {count: clock(count) for count in COUNTS}

# %%
milliseconds = {f"rows: {count}": {name: 1000 * t.median for name, t in row.items()} for count, row in times.items()}
for count, row in times.items():
    for name, timing in row.items():
        faster = ratio(row["float32"], timing)
        print(f"{count:3} rows, {name:21} {1000 * timing.median:7.2f} ms; {faster['median']:.2f} times as fast as float32 "
              f"(quartiles {faster['p25']:.2f} to {faster['p75']:.2f})")
gains = [ratio(times[8]["float32"], times[8][name])["median"] for name in ("int8 both sides", "int8 decoded first")]
print(f"8 rows: int8 on both sides {gains[0]:.1f}x, you guessed {guessed[3]:.1f}x; "
      f"decoded first {gains[1]:.2f}x, you guessed {guessed[4]:.1f}x")
kept = read_record("bench-quant")["reports"][0]["results"]["int8"]["speed_over_float32"]["median"]
print(f"recorded by `minimoe bench quant`, 8 rows, decoded first: {kept:.2f}x")
figures.compared(milliseconds, "milliseconds", f"Figure 17: measured here, {WIDTH} x {WIDTH}", "{:.1f}".format)

# %% [markdown]
# > **Key observation.** Few rows wait for weights to arrive from memory, and int8 has a quarter of the bytes. But only if
# > the product itself is in integers. Decoding first makes a float32 matrix in memory, which then has to be read again:
# > smaller on disk, and *slower* than not quantizing. Whoever complains that quantization made a model slower often has
# > this. (How slow depends on memory: the decoded matrix is new in every call. A Python process gives its pages back to
# > the system each time and gets them zeroed again, unless it calls `keep_memory()`, as this notebook and the `minimoe`
# > command do.) The row that was not padded is a lesson too: the same sums, by another path of the compiler.
#
# ### FP8 and FP4: computed, not measured
#
# No CPU multiplies FP8 or FP4; here both are emulated, and cost time. What would they gain where hardware has them? When one
# text is generated, a token cannot be faster than its weights are read. **Computed** from bytes and the memory bandwidth on
# the data sheets (terabytes a second: A800 2.04, H800 3.35, H20 4.0, B200 8.0), for the routed experts that one token of
# DeepSeek-V4-Flash meets: 43 layers, 6 experts each of 3 x 4096 x 2048.

# %%
sheet = {"A800": 2.04e12, "H800": 3.35e12, "H20": 4.0e12, "B200": 8.0e12}
weights = 43 * 6 * 3 * 4096 * 2048
stored = {"bfloat16": 16.0, "FP8, 128 x 128 blocks": 8 + 32 / 128**2, "MXFP4": 4 + 8 / 32}
print(f"{weights / 1e9:.2f} billion weights a token:", {name: f"{weights * b / 8e9:.2f} GB" for name, b in stored.items()})
floor_ms = {chip: {name: 1000 * weights * b / 8 / speed for name, b in stored.items()} for chip, speed in sheet.items()}
title = "Figure 18: COMPUTED: experts' bytes over data sheet bandwidth"
figures.compared(floor_ms, "milliseconds a token, at least", title, "{:.2f}".format)

# %% [markdown]
# A lower bound and no more: attention, cache, network and kernels come on top, and with many texts at once arithmetic
# limits, not memory. There the matrix units decide: A800 has INT8 and no FP8, H800 and H20 have FP8 and no FP4, B200 has
# both (the same data sheets). A format without a unit still saves bandwidth, if a kernel decodes it on the chip.
#
# ## Training through a rounding
#
# If rounding hurts, train the model to live with it. But a staircase has slope 0 almost everywhere, and nothing is
# learnt from 0. The **straight-through estimator** (arXiv 1308.3432) pretends that the slope is 1.

# %%
from minimoe.quant.qat import straight_through

four = quant.get_format("fp4_e2m1")

def snap(w):
    return four.decode(four.encode(w))

def pretend(w):
    return straight_through(snap, w)

w = jnp.linspace(-7.0, 7.0, 601)
rules = {"its own": snap, "straight through": pretend}
slopes = {name: np.asarray(jax.vmap(jax.grad(rule))(w)) for name, rule in rules.items()}
figures.staircase(np.asarray(w), np.asarray(snap(w)), slopes, "Figure 19: FP4 (e2m1) and two slopes")

# %% [markdown]
# Now one weight that should be 2.6, which FP4 does not have (its neighbours are 2 and 3). The forward pass sees the rounded
# weight, the gradient moves the exact one, the *master*:

# %%
def follow(start, rule, steps=80, rate=0.02):
    master, path = jnp.float32(start), []
    for _ in range(steps):
        path.append((float(master), float(snap(master))))
        master = master - rate * jax.grad(lambda w: (rule(w) - 2.6) ** 2)(master)
    return np.array(path).T


toy = {}
for name, rule in rules.items():
    master, forward = follow(0.3, rule)
    toy |= {f"{name}: master": master, f"{name}: rounded": forward}
    print(f"{name:17} master {master[0]:.2f} -> {master[-1]:.2f}; rounded, mean of the last 20: {forward[-20:].mean():.2f}")
plots.over_steps({"weight": toy}, "Figure 20: small steps add up in the master", half_width=0)

# %% [markdown]
# > **Key observation.** With its own slope the weight never moves. Straight through, steps too small to change the code
# > collect in the master until it does; then the weight rattles between the two codes around 2.6. The master in float32
# > is not a luxury: rounded masters would forget every step.
#
# ### QAT against rounding afterwards
#
# DeepSeek-V4 does this for its experts, after pre-training (section 5.2.1 of the report). Our branch: the copy from two
# thirds of the run now does the last third with rounded weights in every forward pass. Same batches, same learning rates,
# same number of steps. Experts alone lose too little in a model this young (Figure 10), so here **everything but router
# and norms** is MXFP4.

# %%
harsh = quant.QuantRecipe("all-mxfp4", (quant.Rule("(^embed|experts|_proj)$", quant.MXFP4),))
qat_model, qat_optimizer = branch
qat_losses = run_steps(qat_model, qat_optimizer, BRANCH, STEPS, transform=qat_transform(qat_model, harsh))
outcomes = {
    "plain, float32": before,
    "plain, rounded afterwards": bits(rounded(model, harsh), scored),
    "QAT, rounded": bits(rounded(qat_model, harsh), scored),
    "QAT, its float32 master": bits(qat_model, scored),
}
for name, value in outcomes.items():
    print(f"{name:27} {value:.4f} bits per byte, {value - before:+.4f}")
won = outcomes["plain, rounded afterwards"] - outcomes["QAT, rounded"]
print(f"of what rounding afterwards loses, QAT {'wins back' if won > 0 else 'wins back nothing: it is worse by'} {abs(won):.4f}")
plots.seeds({name: [value] for name, value in outcomes.items()}, title="Figure 21: computed here, nano, one seed")

# %%
tail = {"plain": np.array(losses[BRANCH:]), "QAT": np.array(qat_losses)}
gap = tail["QAT"] - tail["plain"]
print(f"training loss, QAT minus plain: {gap[:5].mean():+.3f} in the first steps, {gap[-5:].mean():+.3f} in the last")
panels = {"loss (nats/token)": tail, "difference": {"QAT minus plain": gap}}
plots.over_steps(panels, f"Figure 22: after step {BRANCH}, the same batches")

# %% [markdown]
# A longer experiment is **recorded**: `small` after its hour of training, more steps with and without the rounding of its
# experts, several seeds, whole validation text (`minimoe experiments run qat-mxfp4`, `minimoe/records/qat-mxfp4.json`).

# %%
def runs_of(experiment):
    """The runs of a record, or none with the command that makes them: these experiments are long."""
    try:
        return read_record(experiment)["runs"]
    except minimoe.UserError as missing:
        print(missing)
        return {}


trials = runs_of("qat-mxfp4")
recorded = {}
for run in trials.values():
    kind = "QAT" if run["method"]["qat"] else "plain"
    recorded.setdefault(f"{kind}, float32", []).append(run["full"]["bits_per_byte"])
    recorded.setdefault(f"{kind}, rounded to MXFP4", []).append(run["quantized"]["bits_per_byte"])
for name, values in recorded.items():
    gap = np.mean(values) - np.mean(recorded["plain, float32"])
    print(f"{name:24} {len(values)} seed(s), {np.mean(values):.4f} bits per byte, {gap:+.4f} against plain in float32")
pairs = {name: run["quantized"]["bits_per_byte"] / run["full"]["bits_per_byte"] - 1 for name, run in trials.items()}
for kind in ("plain", "qat"):
    print(f"rounding costs the {kind} runs", ", ".join(f"{loss:+.3%}" for name, loss in pairs.items() if name.startswith(kind)))
plots.seeds(recorded, "bits per byte, whole validation text", "Figure 23: recorded, small") if recorded else None

# %% [markdown]
# ## Training in FP8
#
# DeepSeek-V3 went further: *all* products of training, forward and backward, with FP8 values (arXiv 2412.19437, section
# 3.3): tiles of 1 x 128 for activations and gradients, blocks of 128 x 128 for weights, sums and masters in float32. The
# report's loss stayed within 0.25% of bfloat16. Ours is **recorded** and emulated: nano with float32 and with FP8
# products, three seeds each (`minimoe experiments run fp8-training`).

# %%
trials = runs_of("fp8-training")
curves = {}
for name, run in trials.items():
    curves.setdefault(name.rpartition("-")[0], []).append(run["curve"])
results = {name: [trials[t]["full"]["bits_per_byte"] for t in trials if t.startswith(f"{name}-")] for name in curves}
for seed, (exact, eight) in enumerate(zip(results.get("float32", []), results.get("fp8", []))):
    print(f"seed {seed}: float32 {exact:.4f}, FP8 {eight:.4f} bits per byte, {eight / exact - 1:+.2%}")
plots.curves_with_spread(curves, skip=0.2, title="Figure 24: recorded, nano, training loss") if curves else None

# %%
if len(results) == 2:
    gap, spread = np.mean(results["fp8"]) - np.mean(results["float32"]), max(map(np.ptp, results.values()))
    verdict = "larger" if abs(gap) > spread else "NOT larger"
    print(f"FP8 minus float32: {gap:+.4f} bits per byte; {verdict} than the range between seeds ({spread:.4f})")
plots.seeds(results, "bits per byte, whole validation text", "Figure 25: recorded, nano") if results else None

# %% [markdown]
# ## What to distrust
#
# - **Young models are forgiving.** Ours has seen a few hundred batches. Weights that carry more information have more to
#   lose: the recorded model loses other amounts than the one trained here, and a model of trillions of tokens will again.
# - **No outliers, no problem.** Loud channels grow with size and training. Ours printed its ratio above. A recipe that is
#   harmless here may not be on a model that has them.
# - **One text.** Calibration and scores come from the same six domains. Text of another kind may use other experts.
# - **Bits per byte** average over all tokens. Long reasoning, where one wrong token spoils the rest, is not measured.
# - **The clock** is one CPU, one compiler version, one shape. Another CPU may have no fast int8 at all.
# - **The computed bars** of Figure 18 are bounds, not predictions.
# - **Emulated FP8** sums in float32. Hardware accumulators can be narrower; the V3 report describes how much that costs
#   and the way around it.
#
# ## Exercises
#
# Three functions to write, each in place of its `raise`. `check` says what is wrong in the idea, not only that a number
# differs; `hint("quant.absmax_int8")` says more, three times. The same checks grade a file: `minimoe exercises --help`.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["quant.absmax_int8"]

# %%
def absmax_int8(w):
    raise NotImplementedError("not written yet: quant.absmax_int8")


check("quant.absmax_int8", absmax_int8);

# %%
exercises()["quant.mxfp4_scale"]

# %%
def mxfp4_scale(x):
    raise NotImplementedError("not written yet: quant.mxfp4_scale")


check("quant.mxfp4_scale", mxfp4_scale);

# %%
exercises()["quant.straight_through"]

# %%
def my_straight_through(x, scale):
    raise NotImplementedError("not written yet: quant.straight_through")


check("quant.straight_through", my_straight_through);

# %% [markdown]
# And without a check: write a recipe of your own with `quant.QuantRecipe` and `quant.Rule` that beats `mxfp4` in Figure 10, at
# the same size or smaller. Which part do you spend the saved bytes on?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
