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
# A weight in float32 takes 32 bits. DeepSeek-V4 stores its experts in a little over four. This lesson takes numbers apart,
# rounds them by hand and then rounds trained models. It asks three questions of every format: how many bytes does it save,
# what does the model lose, and **is the model faster or only smaller?**
#
# | | |
# | --- | --- |
# | **You should know** | lesson 00, or: what a router and an expert are; what bits per byte measure |
# | **You will be able to** | read a number format from its bits; write a quantizer that packs; choose which values share a scale; quantize a model with one call and weigh its file; say what each format costs in text, in facts and in solved problems; train through a rounding; name formats that save memory and no time |
# | **Time to study** | 45 minutes, up to the verdicts; the three exercises take 15 to 30 minutes each; *Further* takes 25 |
# | **Time to run** | about two minutes on two CPU cores, under 90 seconds with `MINIMOE_FAST=1` |
#
# Two words first. To *quantize* a number is to replace it by the nearest of a few allowed values. The number of the
# allowed value is its *code*, and the code is what is stored.

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
from minimoe import hub, plots, quant
from minimoe.experiments import read_record
from minimoe.plots import numbers
from minimoe.plots import quantization as figures
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
# The press wrote: "FP8 and INT8, near-lossless, a smaller footprint". Near-lossless by which measure? Smaller by how much?
# On which machine does it also save time?
#
# **Predict before you run.** Replace each `None` by a number. The notebook compares later. *Facts* are the entries of a
# random book that a small model has learnt by heart. *Problems* are calculations that a model solves step by step. `v4` is
# the recipe of DeepSeek-V4: routed experts in 4 bits, attention and the shared expert in 8, the rest in bfloat16.

# %%
my_guesses = {
    "text, experts in FP4: change of bits per byte, percent": None,
    "facts, recipe v4: fewer recalled, of 100 entries of the book": None,
    "problems, recipe v4: fewer solved, of 100 asked": None,
    "8 rows times a large matrix, int8 on both sides: times as fast as float32": None,
    "the same, int8 weights decoded first: times as fast as float32": None,
}
questions = list(my_guesses)


def compare(question, measured):
    """Sets a prediction beside the measurement; without a prediction it waits for one."""
    if my_guesses[question] is None:
        print(f"fill in your prediction at the top and run both cells again: {question}")
    else:
        print(f"{question}: you predicted {my_guesses[question]:g}, measured {measured:.3g}")


# %% [markdown]
# ## Five numbers by hand
#
# Take the five numbers in the next cell and four bits, so whole numbers from -7 to 7. The code -8 exists too, but it has
# no positive partner, and we leave it out. One *scale* serves all five numbers: divide by it, round, multiply again.
#
# Do it on paper first: the scale, the five codes, the five values that come back. Which number suffers most, relative to
# itself? Then give the last number a scale of its own and do it again.

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
print("numbers that became 0:", int((back == 0).sum()), "with one scale,", int((small_back == 0).sum()), "with two")
steps = np.arange(-7, 8)
ways = {"one scale": (steps * scale, back)}
ways["the last one apart"] = (np.append(steps * small_scale, x[4]), np.append(small_back, x[4]))
figures.rounding(x, ways, "Figure 1: five numbers, 15 codes")

# %% [markdown]
# What to see: in the upper row two small numbers land on 0, because the large number sets the step for all five. The
# format is the same in both rows. Only *which numbers share a scale* has changed.
#
# ## The formula
#
# $$q_i=\text{round}\!\left(\frac{x_i}{s}\right),\qquad s=\frac{\max_j|x_j|}{2^{N-1}-1},\qquad \hat x_i=s\,q_i$$
#
# This is equation 1 of SmoothQuant (arXiv 2211.10438). Here $N$ is the number of bits, $q_i$ the code and $s$ the scale.
# This choice of $s$ is called *absmax*. The error is at most $s/2$, whatever $x_i$ is. In a matrix product the scales of
# the rows $t$ and of the columns $o$ can be taken out of the sum, and only whole numbers are summed:
#
# $$y_{to}=s^x_t\,s^w_o\sum_i q^x_{ti}\,q^w_{oi}$$
#
# This is equation 2 of the same paper. A scale that changes *along i* cannot be taken out of the sum.
#
# ## A quantizer that packs
#
# Two 4-bit codes fit into one byte. Here is the whole of an int4 quantizer, in which `group` neighbours share a scale.

# %%
def pack_int4(w, group):
    """[O, I] -> bytes [O, I / 2] and scales [O, I / group]; codes are -7..7."""
    blocks = w.reshape(len(w), -1, group)
    scale = jnp.abs(blocks).max(axis=-1) / 7
    codes = jnp.round(blocks / scale[..., None]).reshape(w.shape).astype(jnp.int8)
    nibbles = (codes & 15).astype(jnp.uint8)  # two's complement, cut to four bits
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scale


def unpack_int4(packed, scale, group):
    """The values that the codes stand for: [O, I]."""
    nibbles = jnp.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    codes = (nibbles.astype(jnp.int8) ^ 8) - 8  # 8..15 stand for -8..-1
    blocks = codes.reshape(len(packed), -1, group)
    return (blocks * scale[..., None]).reshape(nibbles.shape)


# %%
some = jax.random.normal(jax.random.key(0), (64, 256))
packed, scales = pack_int4(some, 32)
theirs = quant.quantize(some, quant.INT4_GROUP32)
np.testing.assert_array_equal(packed, theirs.codes)
np.testing.assert_allclose(scales, theirs.scale, rtol=1e-6)
np.testing.assert_allclose(unpack_int4(packed, scales, 32), theirs.dequantize(), rtol=1e-6)
print(f"{some.nbytes:,} bytes of float32 -> {packed.nbytes:,} bytes of codes and {scales.nbytes:,} bytes of scales")
print(f"the library counts {theirs.bits_per_value} bits a value: {theirs.format.bits} of code and a share of the scale")

# %% [markdown]
# The library's codes are ours, bit for bit. From here on we use `quant.quantize(array, spec)`. A *spec* names the format,
# which values share a scale, and how the scale is stored. If many
# values share a scale, the scales cost few bits. If few values share a scale, the error is small.
#
# ### Exercise: int8 with a scale for each row
#
# `check` says what is wrong in the idea, not only that a number differs. `hint("quant.absmax_int8")` gives up to three
# hints. The same checks grade a file: `minimoe exercises --help`.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["quant.absmax_int8"]

# %%
def absmax_int8(w):
    raise NotImplementedError("not written yet: quant.absmax_int8")


check("quant.absmax_int8", absmax_int8);

# %% [markdown]
# ## Formats, bit by bit
#
# Whole numbers are evenly spaced. A floating point number has a sign bit, *e* exponent bits and *m* mantissa bits, and is
# named after them: E4M3 has e = 4 and m = 3. With exponent field $E$ and mantissa field $M$ its value is
#
# $$\pm\left(1+\frac{M}{2^m}\right)2^{E-\text{bias}}\quad\text{if }E>0,\qquad \pm\frac{M}{2^m}\,2^{1-\text{bias}}\quad\text{if }E=0$$
#
# The *bias* lets exponents be negative. The second case is a *subnormal* number: these fill the gap around zero evenly. Ten
# lines decode them all, and agree with the library on every code.

# %%
def float_value(code, e, m, bias):
    """The value of one code of 1 + e + m bits, special codes left aside."""
    sign = -1.0 if code >> (e + m) else 1.0
    exponent, mantissa = (code >> m) & (2**e - 1), code & (2**m - 1)
    if exponent == 0:
        return sign * mantissa / 2**m * 2.0 ** (1 - bias)
    return sign * (1 + mantissa / 2**m) * 2.0 ** (exponent - bias)


layouts = {"fp8_e4m3": (4, 3, 7), "fp8_e5m2": (5, 2, 15), "fp4_e2m1": (2, 1, 1)}
special = {}
for name, (e, m, bias) in layouts.items():
    f = quant.get_format(name)
    library = np.asarray(f.decode(jnp.asarray(f.code_points())), np.float64)
    ours = np.array([float_value(code, e, m, bias) for code in range(2**f.bits)])
    finite = np.isfinite(library)
    np.testing.assert_array_equal(ours[finite], library[finite])
    special[name] = f"{np.isinf(library).sum()} infinities, {np.isnan(library).sum()} NaN"
scale_codes = np.asarray(quant.e8m0_decode(jnp.arange(256, dtype=jnp.uint8)), np.float64)
np.testing.assert_array_equal(scale_codes[:255], 2.0 ** (np.arange(255) - 127.0))
special["ue8m0"] = f"{np.isnan(scale_codes).sum()} NaN, no zero, no sign"

# %%
lines = ["| format | bits | bias | smallest above 0 | smallest normal | largest | values | special codes |", "| --- " * 8 + "|"]
for name, bits in {"int8": "two's complement", "int4": "two's complement", "fp8_e4m3": "s eeee mmm", "fp8_e5m2": "s eeeee mm",
                   "fp4_e2m1": "s ee m", "nf4": "a table of 16", "ue8m0": "eeeeeeee"}.items():  # fmt: skip
    f = quant.get_format(name)
    bias = layouts[name][2] if name in layouts else (127 if name == "ue8m0" else "")
    normal = f"{2.0 ** (1 - bias):g}" if name in layouts else ""
    count = len(f.values()) if name != "ue8m0" else int(np.isfinite(scale_codes).sum())
    lines.append(f"| `{name}` | {bits} | {bias} | {f.smallest:.3g} | {normal} | {f.max:.6g} | {count} "
                 f"| {special.get(name, 'none')} |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# Four names build on these formats:
#
# - **MXFP8** and **MXFP4** (*microscaling*, OCP specification 1.0): E4M3 or E2M1 codes, and one `ue8m0` byte for 32 values.
#   The byte is an exponent, so the scale is a power of two.
# - **NVFP4**: E2M1 codes, one E4M3 scale for 16 values, and one float32 scale for the whole array.
# - **NF4** (*NormalFloat*, arXiv 2305.14314): 16 values taken from the normal distribution, more of them near zero.
#
# E4M3 has no infinity: the codes that would stand for it are used for numbers, up to 448. E2M1 and the integers have no NaN at all, so a NaN must be refused
# before it is quantized.

# %%
names = ["int8", "fp8_e4m3", "fp8_e5m2", "int4", "fp4_e2m1", "nf4"]
for name in names:
    values = quant.get_format(name).values()
    near = np.sum(np.abs(values) <= quant.get_format(name).max / 10)
    print(f"{name:9} {len(values):3} values, {near:3} of them within a tenth of the largest")
numbers.number_lines(names, title="Figure 2: every value of six formats, scaled alike")

# %% [markdown]
# What to see: integers are evenly spaced, and floats crowd around zero. So the largest *absolute* error of an integer
# format is the same everywhere. The largest *relative* error of a float format is the same everywhere, as long as the
# number is not subnormal and not above the largest value. For E4M3 it is at most 1/16.
#
# ## Which values share a scale?
#
# Next is a weight matrix with output channels as rows and **one** planted outlier. Every way is int8. The decibels leave
# the outlier itself out, because it comes back almost exactly in every way. Decibels are $10\log_{10}$ of the power of the
# signal over the power of the error, so 20 dB is an error of a tenth.

# %%
rows, columns = 48, 96
plain = 0.02 * jax.random.normal(jax.random.key(0), (rows, columns))
weight = plain.at[20, 40].set(1.0)  # fifty standard deviations
counted = np.ones((rows, columns), bool)
counted[20, 40] = False
shapes = {"tensor": quant.PerTensor(), "block 16 x 32": quant.Block(16, 32), "row": quant.PerChannel(),
          "group of 32": quant.Group(32), "group of 8": quant.Group(8)}  # fmt: skip
found = {name: quant.quantize(weight, quant.Spec("int8", shape)) for name, shape in shapes.items()}
for name, q in found.items():
    decibels = quant.sqnr_db(weight * counted, q.dequantize() * counted)
    print(f"{name:14} {weight.shape} values, {q.scale.shape!s:9} scales, "
          f"{q.bits_per_value:5.2f} bits a value, {decibels:.1f} dB")
answers = {name: np.asarray(q.dequantize()) for name, q in found.items()}
numbers.granularity_errors(np.asarray(weight), answers, "Figure 3: one outlier weight, int8", counted)

# %% [markdown]
# What to see: the error fills exactly the values that share a scale with the outlier. Smaller groups confine it and cost
# more bits for scales.
#
# ### Activations: one loud channel
#
# In many trained language models a few *channels* of the activations are loud for every token (arXiv 2208.07339). Rows are
# tokens now, and one channel is 50 times as loud. *Smoothed* divides that channel by a factor and multiplies the weights
# that read it by the same factor (SmoothQuant, equation 4).

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
heard = {name: float(quant.sqnr_db(loud * quiet, values * quiet)) for name, values in answers.items()}
for name, value in heard.items():
    print(f"{name:16} {value:5.1f} dB on the quiet channels, {value - heard['tensor']:+5.1f} against one scale for all")

# %% [markdown]
# > **Key observation.** Against one scale for all, each of the four other ways helps. A scale for each token helps least, and one for each *channel* most.
#
# The scale of a channel changes along the axis that is summed, so the product can no
# longer be one sum of whole numbers. SmoothQuant keeps a scale for each token and moves the loudness into the
# weights. DeepSeek uses small tiles and scales each partial sum.
#
# ## Error against bits
#
# Now formats and groups together. All bits are counted, those of codes *and* of scales. There are three arrays: independent
# normal numbers, numbers with heavy tails, and activations with the loud channel.

# %%
arrays = {
    "normal": jax.random.normal(jax.random.key(2), (256, 1024)),
    "heavy tails": jax.random.t(jax.random.key(3), 3.0, (256, 1024)),
    "a loud channel": jax.random.normal(jax.random.key(4), (256, 1024)).at[:, 40].multiply(50.0),
}
specs = {name: quant.SPECS[name] for name in ("int8_channel", "mxfp8", "fp8_tile", "nf4_group64", "nvfp4", "mxfp4")}
specs |= {"int8, groups of 32": quant.Spec("int8", quant.Group(32)),
          "e4m3, groups of 32": quant.Spec("fp8_e4m3", quant.Group(32)),
          "int4, groups of 32": quant.INT4_GROUP32, "int4, a scale a row": quant.Spec("int4", quant.PerChannel())}  # fmt: skip
panels = {
    label: {
        name: (q.bits_per_value, float(quant.sqnr_db(array, q.dequantize())))
        for name, q in ((name, quant.quantize(array, spec)) for name, spec in specs.items())
    }
    for label, array in arrays.items()
}
for name in specs:
    decibels = [f"{label} {row[name][1]:5.1f} dB" for label, row in panels.items()]
    print(f"{name:20} {panels['normal'][name][0]:5.2f} bits", *decibels, sep="   ")
lead = {label: row["int8, groups of 32"][1] - row["e4m3, groups of 32"][1] for label, row in panels.items()}
print("int8 minus E4M3, both in groups of 32:", ", ".join(f"{label} {gap:+.1f} dB" for label, gap in lead.items()))
figures.error_against_bits(panels, "Figure 4: what the bits buy")

# %% [markdown]
# What to see: points to the upper left are better. The dashed line is Shannon's limit for normal numbers,
# $D=\sigma^2 2^{-2R}$, or 6.02 dB a bit. Other arrays have other limits.
#
# > **Key observation.** With the same groups of 32, int8 is ahead of E4M3 on all three arrays. A comparison of `int8_channel`
# > with `fp8_tile` says something else, because there the groups differ too. In four bits the group matters as much as the
# > format: compare int4 with a scale a row and in groups of 32 on heavy tails.
#
# ## A scale that is a power of two
#
# In MX formats the scale is one byte, an exponent. But absmax is rarely a power of two. DeepSeek rounds the scale **up**,
# and then every value fits. The OCP specification (section 6.3) takes the exponent of absmax, and then values between 6 and
# 8 times the scale *saturate*: they become 6.
#
# $$s_\text{up}=2^{\lceil\log_2(a/6)\rceil},\qquad s_\text{OCP}=2^{\lfloor\log_2 a\rfloor-2},\qquad a=\max_j|x_j|$$
#
# The next cell has a block of eight numbers. FP4 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6. Work out both scales of the
# block on paper first.

# %%
block = np.array([7.4, 5.2, -2.6, 1.2, 0.7, -0.4, 0.3, 0.1], dtype=np.float32)
for rule in ("deepseek", "ocp"):
    s = float(quant.ue8m0_scale(jnp.asarray(np.abs(block).max()), 6.0, rule))
    q = quant.quantize(jnp.asarray(block), quant.Spec("fp4_e2m1", quant.Group(8), "ue8m0", rule))
    error = np.abs(np.asarray(q.dequantize()) - block)
    print(f"{rule:9} scale {s:g}, stored as the byte {q.scale[0]}; back {np.asarray(q.dequantize())}")
    print(f"{'':9} error of the largest {error[0]:.2f}, of the other seven together {error[1:].sum():.2f}")
for label, array in arrays.items():
    back = [quant.quantize(array, spec).dequantize() for spec in (quant.MXFP4, quant.MXFP4_OCP)]
    up, ocp = (float(quant.sqnr_db(array, values)) for values in back)
    print(f"{label:15} rounded up {up:.2f} dB, OCP {ocp:.2f} dB")

# %% [markdown]
# > **Key observation.** Rounded up, nothing saturates, and the small values of the block lose a bit. With OCP's rule the
# > small values keep that bit, and the largest is cut. Neither rule wins on all three arrays.
#
# ### Exercise: the scale of an FP4 block

# %%
exercises()["quant.mxfp4_scale"]

# %%
def mxfp4_scale(x):
    raise NotImplementedError("not written yet: quant.mxfp4_scale")


check("quant.mxfp4_scale", mxfp4_scale);

# %% [markdown]
# ## One call, and what lies on the disk
#
# The model `small` comes with the package. It was trained for an hour on text. It ships in int8, so we decode it to
# float32 first. A **recipe** is a list of rules: a pattern on the path of a module, a format for its weights, and
# optionally one for its inputs. `quantize_model` returns a model whose modules hold codes; no float copy is kept.

# %%
stored, tokenizer, config = minimoe.load_pretrained("small")
model = quant.dequantize_model(stored)
for row in quant.size_report(quant.quantize_model(model, "mxfp4")).rows[5:9]:
    print(f"{row.path:32} {row.shape!s:16} {row.format:9} {row.bits_per_value:6.2f} bits a value {row.bytes:9,} bytes")
for name, r in quant.RECIPES.items():
    print(f"{name:10} {r.doc}")

# %% [markdown]
# A size that was only computed proves nothing. So we save each model and ask the file system.

# %%
import dataclasses
import tempfile
from pathlib import Path


def file_bytes(candidate):
    with tempfile.TemporaryDirectory() as folder:
        hub.save(candidate, Path(folder) / "model")
        return os.path.getsize(Path(folder) / "model" / "model.safetensors")


recipes = {name: quant.get_recipe(name) for name in ("int8", "int4", "fp8", "mxfp4", "v4")}
recipes["mxfp4, rest bfloat16"] = dataclasses.replace(recipes["mxfp4"], rest="bfloat16")
reports = {}
for name, recipe in recipes.items():
    smaller = quant.quantize_model(model, recipe)
    size, reports[name] = file_bytes(smaller), quant.size_report(smaller)
    assert abs(size / reports[name].bytes - 1) < 0.03  # the file has the packed bits and little more
    ratio = reports[name].bfloat16_bytes / reports[name].bytes
    print(f"{name:20} on disk {size / 1e6:5.2f} MB, {reports[name].bits_per_value:5.2f} bits a value, "
          f"{ratio:.2f}x smaller than bfloat16")

# %% [markdown]
# > **Key observation.** "FP4" describes the experts only. The recipe `mxfp4` leaves all other weights in float32, and
# > its ratio compares them with a model that is bfloat16 throughout.
#
# With the other weights in bfloat16, the same experts give the better ratio in the last line. A model of another size
# has another ratio: in DeepSeek-V4 the experts are a much larger share (lesson 01).
#
# Many libraries round weights and keep them in float32. This is *fake* quantization: the answers are those of the codes,
# the bytes are not.
#
# ## What does a format cost? Three yardsticks
#
# Bits per byte of text are an average over many tokens that are easy to predict. Two harder yardsticks stand beside them:
#
# - **text**: `small`, change of bits per byte on all validation text (record `quant-recipes`);
# - **facts**: a small model with 4 experts that has learnt a book of random facts by heart, as many as it can hold; the
#   entries that it still recalls (record `knowledge-formats`, three seeds);
# - **problems**: the shipped `teacher` solves reasoning problems step by step; the share with exactly the right answer
#   (record `reasoning-formats`, three sets of 250 problems). The teacher ships in int8 too, so it was decoded first. Its
#   int8 row is therefore a row of int8 *activations*.
#
# All three are **recorded**: `minimoe experiments run NAME` makes them again.

# %%
def recorded(name):
    """A record, or an empty one with the command that makes it: these experiments are long."""
    try:
        return read_record(name)
    except minimoe.UserError as missing:
        print(missing)
        return {"runs": {}, "solved": {}}


texts, facts, problems = (recorded(name) for name in ("quant-recipes", "knowledge-formats", "reasoning-formats"))
full = {name: 100 * row["full"]["relative_change"] for name, row in texts["recipes"].items()}
after = [run for name, run in facts["runs"].items() if name.startswith("plain-")]
forgotten = {name: [100 * (run["recalled"] - run["formats"][name]) for run in after]
             for name in (after[0]["formats"] if after else ())}  # fmt: skip
solved = {name: [100 * found["mean_exact_match"] for found in sets] for name, sets in problems["solved"].items()}
unsolved = {name: [a - b for a, b in zip(solved["float32"], sets, strict=True)]
            for name, sets in solved.items() if name != "float32"}  # fmt: skip
print(f"text: {texts['float32']['full']['bits_per_byte']:.4f} bits per byte in float32")
print("facts recalled in float32, by seed:", ", ".join(f"{run['recalled']:.1%}" for run in after))
print("problems solved in float32, by set:", ", ".join(f"{share:.1f}%" for share in solved.get("float32", [])))

# %%
def three(values):
    """Mean and, in brackets, the smallest and largest of paired differences."""
    if not values:
        return "not measured"
    mean, low, high = (round(float(value), 1) + 0.0 for value in (np.mean(values), min(values), max(values)))  # no -0.0
    return f"{mean:.1f} ({low:+.1f} to {high:+.1f})"


lines = ["| recipe | text: change | facts forgotten, points | problems lost, points |", "| --- " * 4 + "|"]
for name in [*full, "all-mxfp4"]:
    if name in forgotten or name in unsolved:
        change = f"{full[name]:+.2f}%" if name in full else "not measured"
        lines.append(f"| `{name}` | {change} | {three(forgotten.get(name))} | {three(unsolved.get(name))} |")
display(Markdown("\n".join(lines)))
compare(questions[0], full["mxfp4"])
for question, losses in zip(questions[1:3], (forgotten, unsolved), strict=True):
    if losses:
        compare(question, np.mean(losses["v4"]))

# %% [markdown]
# In brackets stand the smallest and the largest loss of the three seeds or sets. Each is paired: the same model, or the
# same problems, before and after.
#
# > **Key observation.** On text every recipe looks near-lossless. Facts tell the formats apart: int8 forgets little, E4M3
# > forgets far more, and four bits without GPTQ forget about half of the book or more. Of the book, not of what was known: these
# > models knew two thirds of it or more. A guess at the reason: a book of random facts leaves a model no weight to spare.

# %%
order = ("int8", "int8-w8a8", "fp8", "int4", "int4+gptq", "mxfp4", "mxfp4+gptq", "nvfp4", "v4")
rows_of = {name: forgotten[name] for name in order if name in forgotten}
measure = "points forgotten, of 100 entries; ± standard deviation of seeds"
plots.seeds(rows_of, measure, "Figure 5: facts forgotten, by format") if rows_of else None

# %% [markdown]
# What to see: one dot is one seed, and dots further right have forgotten more. In every seed int8 forgets least, then E4M3,
# then four bits. GPTQ, which is explained under *Further*, wins back a part in every
# seed. A guess at why E4M3 loses to int8: E4M3 has only 3 bits of mantissa, and int8 with a scale for each row has finer
# steps for most weights.

# %%
measure = "points lost, of 100 problems; ± standard deviation of sets"
plots.seeds(unsolved, measure, "Figure 6: problems lost, by format") if unsolved else None

# %% [markdown]
# What to see: one dot is one set, and all rows but the last lie close to zero. `mxfp4` loses a few problems in every set and
# `nvfp4` gains a few; three sets cannot tell such differences from chance. The last row tests the yardstick: `all-mxfp4`
# rounds everything but router and norms, and it loses far more problems in every set. So the yardstick can show damage.
#
# ## Which part suffers?
#
# Now one part at a time goes to FP4, and the rest stays in float32. The text is the beginning of some validation documents,
# six domains alike. One model and one text: read the order of sizes, not the last digit.

# %%
from minimoe.data import documents, evaluation_documents
from minimoe.plots.model_bytes import part_of
from minimoe.quant.qat import qat_transform
from minimoe.training import evaluate

firsts = {document.domain: document for document in reversed(evaluation_documents(documents(), "quick"))}
part = [dataclasses.replace(document, text=document.text[: 800 if FAST else 6000]) for document in firsts.values()]


def rounded(source, recipe):
    """``source`` with weights rounded as the recipe says, kept in float32: fake quantization, quick to score."""
    graphdef, params, rest = nnx.split(source, nnx.Param, ...)
    return nnx.merge(graphdef, qat_transform(source, recipe)(params), rest)


def bits(candidate):
    return evaluate(candidate, part, tokenizer).bits_per_byte


floor = bits(model)
print(f"float32: {floor:.4f} bits per byte on this text")

# %%
paths = {"routed experts": r"ffn\.experts", "shared expert": r"ffn\.shared", "attention": "attention",
         "embedding": "^embed$", "router": "router$"}  # fmt: skip
for kind, path in paths.items():
    cost = bits(rounded(model, quant.QuantRecipe("part", (quant.Rule(path, quant.MXFP4),)))) - floor
    held = sum(row.bytes for row in quant.size_report(model).rows if part_of(row.path) == kind) / 2  # in bfloat16
    saved = held * (1 - 4.25 / 16) / 1e6
    print(f"{kind:14} costs {cost:+.4f} bits per byte, saves {saved:6.3f} MB: "
          f"{1000 * cost / saved:+7.2f} thousandths a megabyte")
for format, label in (("int8", "int8"), ("fp4_e2m1", "FP4")):
    row = texts["recipes"][f"router-{format}"]
    print(f"recorded, all validation text, router alone in {label}: {row['full']['relative_change']:+.2%}, "
          f"{row['routing_changed']:.1%} of the expert choices change")
moved = texts["recipes"]["mxfp4"]["routing_changed"]
print(f"recorded, all routed experts in FP4: {full['mxfp4']:+.2f}%, {moved:.1%} of the choices change")

# %% [markdown]
# > **Key observation.** The routed experts hold most of the bytes, and a megabyte saved there costs least. A megabyte saved
# > in the embedding costs far more.
#
# A guess at the reason: each expert answers only a few tokens. DeepSeek-V4 keeps its embedding in bfloat16.
#
# > **The router.** No recipe gives the router fewer than 16 bits. The numbers do not show that it needs 32: int8 in the router costs
# > nothing here. FP4 in the router costs about as much as FP4 in all routed experts, and saves kilobytes instead of
# > megabytes. So four bits are a bad trade there, and 16 or 32 bits cost almost nothing.
#
# ## The clock
#
# A smaller model need not be faster. One large matrix and a few rows are multiplied on this CPU in three ways, in turn:
#
# - float32;
# - int8 on both sides: the rows are rounded when they arrive, and whole numbers are multiplied;
# - int8 weights that are first decoded to float32 and then multiplied.

# %%
from minimoe.bench import alternate, ratio
from minimoe.quant.matmul import int8_matmul, qmatmul

WIDTH, COUNTS = (1024, (1, 8)) if FAST else (4096, (1, 8, 64))
kernel = jax.random.normal(jax.random.key(5), (WIDTH, WIDTH)) / WIDTH**0.5
narrow = quant.quantize(kernel.T, quant.INT8_CHANNEL)
kinds = {"float32": (jax.jit(jnp.matmul), kernel), "int8 both sides": (jax.jit(int8_matmul), narrow),
         "int8 decoded first": (jax.jit(qmatmul), narrow)}  # fmt: skip


def clock(count):
    rows = jax.random.normal(jax.random.key(6), (count, WIDTH))
    calls = {name: lambda f=f, w=w: f(rows, w).block_until_ready() for name, (f, w) in kinds.items()}
    return alternate(calls, rounds=3 if FAST else 9, warmup=2, pause=0.01)


times = {count: clock(count) for count in COUNTS}

# %%
faster = {count: {name: ratio(row["float32"], row[name]) for name in list(row)[1:]} for count, row in times.items()}
for count, row in faster.items():
    for name, r in row.items():
        print(f"{count:3} rows, {name:18} {r['median']:.2f} times as fast as float32 "
              f"(quartiles {r['p25']:.2f} to {r['p75']:.2f})")
for question, name in zip(questions[3:], faster[8], strict=True):
    compare(question, faster[8][name]["median"])
for report in read_record("bench-quant")["reports"][:2]:
    kept = {name: report["results"][name]["speed_over_float32"]["median"] for name in ("int8-w8a8", "int8")}
    print(f"recorded, {report['shape']['T']} rows: both sides {kept['int8-w8a8']:.2f}x, decoded first {kept['int8']:.2f}x")
milliseconds = {f"rows: {count}": {name: 1000 * t.median for name, t in row.items()} for count, row in times.items()}
figures.compared(milliseconds, "milliseconds", f"Figure 7: measured here, {WIDTH} x {WIDTH}", "{:.1f}".format)

# %% [markdown]
# What to see: shorter bars are faster. int8 has a quarter of the bytes, which can help where few rows wait for
# weights to come from memory, and only if the product itself is in whole numbers. Where float32 takes far longer for eight rows
# than for one, with the same bytes, its product is slow for another reason, and the ratio at eight rows flatters int8. Decoding first writes a float32 matrix to memory and
# reads it again, so the file is smaller and this product is *not faster*. The recorded lines were measured with nothing
# else running. How slow decoding is depends on the machine's memory; the recorded ratios differ from the ones here.
#
# A whole model can gain more than the ratio of bytes. That is a warning about the baseline:

# %%
for report in read_record("bench-quant-decode")["reports"]:
    if report["config"] == "random-300m" and report["shape"]["B"] == 1:
        base, eight = report["results"]["float32"], report["results"]["int8-w8a8"]
        gain, fewer = eight["speed_over_float32"]["median"], base["bytes"] / eight["bytes"]
        decoded = report["results"]["int8"]["speed_over_float32"]["median"]
        read = {name: report["parameters"]["active"] * row["bytes"] / base["bytes"] * 4 * row["tokens_per_second"] / 1e9
                for name, row in (("float32", base), ("int8", eight))}  # fmt: skip
        print(f"recorded, {report['parameters']['total'] / 1e6:.0f}M parameters, one text: {gain:.2f} times as fast, "
              f"{fewer:.2f} times fewer bytes; decoded first {decoded:.2f} times as fast")
        print("gigabytes of active weights read in a second:", ", ".join(f"{name} {speed:.1f}" for name, speed in read.items()))

# %% [markdown]
# Fewer bytes can explain a gain up to their ratio and no more. The float32 model reads its weights at a lower rate than
# the int8 model does, so the baseline is slow for another reason, which this benchmark does not find. (That int8 *decoded first*
# is faster than float32 here, though not in the product alone above, points the same way.) So the part of the gain above the
# ratio of bytes is not the merit of quantization.
#
# ## Training through a rounding
#
# A model can be trained to live with the rounding: *quantization-aware training*, QAT. But a staircase has slope 0 almost
# everywhere, and nothing is learnt from 0. The **straight-through estimator** (arXiv 1308.3432) pretends that the slope
# is 1. Built by hand it is one line:

# %%
from minimoe.quant.qat import straight_through

four = quant.get_format("fp4_e2m1")


def snap(w):
    return four.decode(four.encode(w))


def pretend(w):
    return w + jax.lax.stop_gradient(snap(w) - w)  # the value of snap(w), the slope of w


w = jnp.linspace(-7.0, 7.0, 601)
rules = {"its own": snap, "straight through": pretend}
slopes = {name: np.asarray(jax.vmap(jax.grad(rule))(w)) for name, rule in rules.items()}
np.testing.assert_allclose(pretend(w), straight_through(snap, w), atol=1e-6)
np.testing.assert_array_equal(slopes["straight through"], jax.vmap(jax.grad(lambda v: straight_through(snap, v)))(w))
figures.staircase(np.asarray(w), np.asarray(snap(w)), slopes, "Figure 8: FP4 (E2M1) and two slopes")

# %% [markdown]
# What to see: above, the rounded weight jumps where the dashed line passes smoothly. Below, its own slope is 0 and the
# pretended one is 1.
#
# Now one weight should become 2.6, which FP4 does not have; its neighbours are 2 and 3. The forward pass sees the rounded
# weight, and the gradient moves the exact one, the *master*.

# %%
def follow(start, rule, steps=80, rate=0.02):
    master, path = jnp.float32(start), []
    for _ in range(steps):
        path.append((float(master), float(snap(master))))
        master = master - rate * jax.grad(lambda w: (rule(w) - 2.6) ** 2)(master)
    return np.array(path).T


for name, rule in rules.items():
    master, forward = follow(0.3, rule)
    print(f"{name:17} master {master[0]:.2f} -> {master[-1]:.2f}; "
          f"rounded weight, mean of the last 20 steps {forward[-20:].mean():.2f}")

# %% [markdown]
# > **Key observation.** With its own slope the weight never moves. Straight through, small steps add up in the float32 master
# > until the code changes. Then the code alternates between 2 and 3, and its mean is near 2.6.
#
# ### Exercise: a rounding with a slope

# %%
exercises()["quant.straight_through"]

# %%
def my_straight_through(x, scale):
    raise NotImplementedError("not written yet: quant.straight_through")


check("quant.straight_through", my_straight_through);

# %% [markdown]
# ### QAT against rounding afterwards
#
# DeepSeek-V4 trains its experts through MXFP4 after the main training (section 5.2.1 of the report). Our two trials:
#
# - **text**: `small` goes on for 200 steps with and without the rounding of its experts, three seeds (`qat-mxfp4`);
# - **facts**: the small models of `knowledge-formats` are trained through the rounding from the first step.

# %%
trials = recorded("qat-mxfp4")["runs"]


def mean_of(kind, score):
    return np.mean([run[score]["bits_per_byte"] for name, run in trials.items() if name.startswith(kind)])


started, rounded_at_once = (row["full"]["bits_per_byte"] for row in (texts["float32"], texts["recipes"]["mxfp4"]))
outcomes = {"small, float32": started, "small, rounded to MXFP4 at once": rounded_at_once,
            "200 steps more, float32": mean_of("plain", "full"), "200 steps more, then rounded": mean_of("plain", "quantized"),
            "200 steps of QAT, rounded": mean_of("qat", "quantized")}  # fmt: skip
for name, value in outcomes.items():
    print(f"text: {name:32} {value:.4f} bits per byte, {value - started:+.4f}")
trained = {}
for recipe in ("int4", "mxfp4", "v4"):
    pairs = [(facts["runs"][f"plain-{s}"]["formats"][recipe], facts["runs"][f"qat-{recipe}-{s}"]["formats"][recipe])
             for s in range(3) if f"qat-{recipe}-{s}" in facts["runs"] and f"plain-{s}" in facts["runs"]]  # fmt: skip
    trained[recipe] = [100 * (after - before) for before, after in pairs]
    print(f"facts: {recipe:6} trained through the rounding minus rounded afterwards, points: {three(trained[recipe])}")

# %% [markdown]
# > **Key observation.** On text, going on for 200 steps made `small` worse, with and without the rounding. QAT beats only its
# > own baseline, the longer training that is then rounded. `small` rounded at once is better than both, so at this size and
# > with this schedule rounding at once is the better choice.
#
# > On facts QAT wins in every pair. These models met the rounding from their first step. They still recall less than the
# > float32 models, so QAT makes the loss smaller and does not remove it.
#
# ## Verdicts

# %%
def shown(losses, name):
    return three(losses.get(name))


plots.verdict(
    claim='"FP8 and INT8, near-lossless, smaller footprint."',
    means="With 8-bit weights a trained model answers almost as before, and its file is about half of bfloat16.",
    measured=f"Text: int8 {full['int8']:+.2f}%, fp8 {full['fp8']:+.2f}%. Facts forgotten: int8 {shown(forgotten, 'int8')}, "
    f"fp8 {shown(forgotten, 'fp8')} points. Problems lost: fp8 {shown(unsolved, 'fp8')} points. "
    f"The int8 file is {reports['int8'].bfloat16_bytes / reports['int8'].bytes:.2f}x smaller than bfloat16. On this CPU, 8 rows: "
    f"int8 on both sides {faster[8]['int8 both sides']['median']:.2f}x, "
    f"decoded first {faster[8]['int8 decoded first']['median']:.2f}x.",
    says="holds when the format is int8: FP8 keeps text and problems too, but it forgets facts of a book learnt by heart",
    would_change="A larger model with loud channels on which int8 weights lose more than the spread of seeds.",
)

# %%
plots.verdict(
    claim="DeepSeek-V4 stores its experts in FP4.",
    means="Experts in MXFP4, trained through the rounding, lose little.",
    measured=f"Text: mxfp4 {full['mxfp4']:+.2f}%, v4 {full['v4']:+.2f}%. "
    f"Facts forgotten: mxfp4 {shown(forgotten, 'mxfp4')}, v4 {shown(forgotten, 'v4')} points. Problems lost: "
    f"mxfp4 {shown(unsolved, 'mxfp4')}, v4 {shown(unsolved, 'v4')}, everything {shown(unsolved, 'all-mxfp4')} points. "
    f"QAT on text: {outcomes['200 steps of QAT, rounded'] - rounded_at_once:+.4f} bits per byte against `small` rounded at once. "
    f"QAT on facts, mxfp4: {shown(trained, 'mxfp4')} points recalled more than rounded afterwards.",
    says="holds when text or problems are asked: they hardly change, but of a book learnt by heart much is forgotten, "
    "and QAT wins back only a part",
    would_change="A schedule on which going on does not hurt `small`, and a book learnt by heart that survives FP4.",
)

# %% [markdown]
# ## What to distrust
#
# - **Small models are not large ones.** Loud channels grow with size and training. Ours are printed under *Further*.
# - **One text.** Text of another kind may use other experts.
# - **The clock** is one CPU and one compiler version. Another CPU may have no fast int8 at all.
# - **FP8 and FP4 are emulated.** No CPU multiplies them. Emulated sums are float32; hardware accumulators can be narrower.
#
# ---
# # Further
#
# ## Calibration, and an expert that few tokens reach
#
# Rounding to nearest treats all weights alike. **GPTQ** (arXiv 2210.17323) looks at the inputs of a matrix on some
# calibration text and lets later weights make up for the error of earlier ones. An expert sees only *its* tokens, and an
# unpopular expert sees few.

# %%
from minimoe.data import training_data
from minimoe.quant.calibrate import collect
from minimoe.quant.sensitivity import expert_calibration_experiment

data = training_data(documents(), tokenizer)


def calibration_text(start, count):
    return [data.batch(7, step, 1, 64).tokens for step in range(start, start + count)]


calibrations = [collect(model, calibration_text(0, count)) for count in ((4, 16) if FAST else (4, 16, 64, 256))]
held_out = collect(model, calibration_text(1000, 8 if FAST else 64))
for layer in range(config.num_layers):
    loudest = held_out[f"layers.{layer}.attention.q_proj"].absmax
    print(f"layer {layer}: loudest input channel of attention {loudest.max() / np.median(loudest):.1f} times the median one")

# %%
errors = expert_calibration_experiment(model, calibrations, held_out, quant.INT4_GROUP32, layers=[1])
seen = [e for e in errors if e.rows > 0 and np.isfinite(e.gptq)]
reached = np.array([e.rows for e in seen])
kind = np.array([e.matrix.rsplit(".", 1)[-1] for e in seen])
ratios = {"own tokens": np.array([e.gptq / e.plain for e in seen]),
          "5% of all added": np.array([e.shrunk / e.plain for e in seen])}
points = {f"{matrix}, {name}": (reached[kind == matrix], ratio[kind == matrix])
          for matrix in sorted(set(kind)) for name, ratio in ratios.items()}  # fmt: skip
for low, high in ((1, 64), (64, 256), (256, 1024), (1024, 10**9)):
    rows = f"{low} to {high - 1} rows" if high < 10**9 else f"{low} rows or more"
    print(f"{rows}, mean error over that of plain rounding:")
    for name, (count, ratio) in points.items():
        here = (count >= low) & (count < high)
        print(f"  {name:30} {ratio[here].mean():.2f} ({here.sum()} cases)" if here.any() else f"  {name:30} no case")
print("cases in which GPTQ is worse than rounding:", int((ratios["own tokens"] > 1).sum()), "of", len(seen))
figures.gain_by_rows(points, "Figure 9: GPTQ in int4, one marker a matrix of an expert")

# %% [markdown]
# What to see: a marker above the dashed line is a matrix that calibration made worse. The two matrices of an expert differ, so
# each has its own colour and its own lines above: `down_proj` needs far more rows than `gate_up_proj` before GPTQ is better than
# plain rounding on average. Mixing 5% of everybody's text into the statistics of an expert helps where rows are few, and hardly
# changes a mean where they are many. Check the rows of each expert before you trust a calibrated mixture of experts.
#
# ## Training in FP8
#
# DeepSeek-V3 trains with FP8 values in all products, forward and backward (arXiv 2412.19437, section 3.3): tiles of 1 x 128
# for activations and gradients, blocks of 128 x 128 for weights, sums and masters in float32. Ours is **recorded** and
# emulated, three seeds. The control is a float32 run whose first weights were changed by a millionth: it says how far two
# runs part by chance.

# %%
scores = {name: run["full"]["bits_per_byte"] for name, run in recorded("fp8-training")["runs"].items()}
gaps = {kind: [scores[f"{kind}-{seed}"] - scores[f"float32-{seed}"] for seed in range(3)] for kind in ("fp8", "nudged")}
for kind, label in (("fp8", "FP8 products"), ("nudged", "float32, nudged by a millionth")):
    print(f"{label:31} minus float32, by seed:", ", ".join(f"{gap:+.4f}" for gap in gaps[kind]),
          f"bits per byte; typical size {np.sqrt(np.mean(np.square(gaps[kind]))):.4f}")

# %% [markdown]
# FP8 moves the result about as far as the change of the first weights does, and in two of three seeds to the better. So
# three seeds show no cost of FP8. A cost smaller than these differences would stay hidden.
#
# ## FP8 and FP4 on an accelerator: computed, not measured
#
# When one text is generated, a token cannot be faster than its weights are read. The next table divides bytes by the memory
# bandwidth on data sheets, for the routed experts that one token of DeepSeek-V4-Flash meets: 43 layers, 6 experts each of
# 3 x 4096 x 2048. It is a lower bound. Attention, cache, network and kernels come on top.

# %%
sheet = {"A800": 2.04e12, "H800": 3.35e12, "H20": 4.0e12, "B200": 8.0e12}  # bytes a second
weights = 43 * 6 * 3 * 4096 * 2048
formats = {"bfloat16": 16.0, "FP8, 128 x 128 blocks": 8 + 32 / 128**2, "MXFP4": 4 + 8 / 32}  # bits a weight
lines = ["| milliseconds a token, at least | " + " | ".join(formats) + " |", "| --- " * (1 + len(formats)) + "|"]
for chip, speed in sheet.items():
    lines.append(f"| {chip} | " + " | ".join(f"{1000 * weights * b / 8 / speed:.2f}" for b in formats.values()) + " |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# A800 has matrix units for INT8 and none for FP8. H800 and H20 have FP8 and no FP4. B200 has both (the same data sheets). A
# format without a unit still saves bandwidth, if a kernel decodes it on the chip.
#
# ## The cache in fewer bits
#
# The keys and values of earlier tokens can be quantized too, one row of head width at a time, as they arrive.

# %%
for name, row in texts["caches"].items():
    print(f"recorded, small, quick protocol: {name:8} {row['bytes_per_token']:5} bytes a token, "
          f"{row['relative_change']:+.3%} bits per byte")

# %% [markdown]
# With heads of 32 numbers a float32 scale a row costs one more bit a value. DeepSeek-V4 stores 448 numbers of a row in FP8,
# with a one-byte scale for 64 of them, and keeps the 64 that carry the position in bfloat16.
#
# ## Names that you will meet
#
# - **Zero points and clipping.** A *zero point* shifts the codes, so that a range such as 0 to 5 uses all of them; here
#   every format is symmetric. *Clipping* chooses a scale below absmax: a few large values saturate, and all others get a
#   finer step. Calibration can search for the scale with the least error.
# - **Static and dynamic activation scales.** A *dynamic* scale is computed from the input of the moment, as `int8-w8a8` does
#   for each token. A *static* scale is fixed in advance from calibration text. It saves a pass over the input, and it
#   fails on inputs that are larger than those of the calibration.
# - **Outliers and rotations.** LLM.int8() (arXiv 2208.07339) keeps the loud channels in 16 bits and multiplies the rest in
#   int8. QuaRot (arXiv 2404.00456) and SpinQuant (arXiv 2405.16406) multiply activations and weights by a rotation, which
#   spreads a loud channel over all channels and leaves the product as it was.
# - **AWQ** (arXiv 2306.00978) quantizes weights only. It finds channels whose inputs are large and scales up the weights
#   that read them before rounding, so that these weights get a smaller relative error. It needs no gradient and little
#   calibration text.
# - **GGUF** is the file format of llama.cpp: one file with weights, tokenizer and settings. Its types, such as Q4_K, are
#   blocks of low-bit codes with scales that are quantized too. It is a container and a family of formats, not a method of
#   training or calibration.
#
# ## And without a check
#
# Write a recipe of your own with `quant.QuantRecipe` and `quant.Rule` that costs less than `mxfp4` in `bits(...)` at the same
# size or smaller. On which part do you spend the saved bytes?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
