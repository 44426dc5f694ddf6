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
# # 07 · Open weights: what is in the files, and who can run them
#
# "Open-weight" means that the numbers of a trained model can be downloaded. It does not mean much until **somebody else's
# program runs them**. "Runs on Huawei chips" is a claim of the same kind. This lesson opens a file of weights with bare hands,
# weighs the formats, and hands our trained models to programs that know nothing of us.
#
# | | |
# | --- | --- |
# | **You should know** | lesson 00; lesson 04 helps (what int8 and FP8 are) |
# | **You will be able to** | read a tensor out of a safetensors file; say why a pickle is a program and a header is not; undo the FP8 blocks of published weights, and write such files; run a model in Transformers, in ONNX Runtime and in a browser; tell "lowered for a chip" from "run on a chip" |
# | **Time to study** | 45 minutes; the three exercises take 15 to 20 minutes each |
# | **Time to run** | about five minutes on two CPU cores |

# %%
import importlib.util
import json
import os
import pickle
import platform
import tempfile
import time
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Markdown, display

import minimoe
from minimoe import hub, plots
from minimoe.inference import generate
from minimoe.model.paths import named_leaves
from minimoe.process import keep_compiled_programs, keep_memory
from minimoe.quant import dequantize_model, quantize_model

# %%
FAST = os.environ.get("MINIMOE_FAST") == "1"
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
work = Path(tempfile.mkdtemp())  # all files of this lesson
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# **Predict before you run.** Replace each `None` by a number. The notebook compares later.

# %%
my_guesses = {
    "bytes of a file of weights that are not weights: percent": None,
    "size of small in recipe v4: percent of float32": None,
    "words of 40 that another program writes differently": None,
    "size of small in the FP8 layout of DeepSeek-V3: percent of float32": None,
}
questions = list(my_guesses)


def compare(question, measured):
    """Sets a prediction beside the measurement; without a prediction it waits for one."""
    if my_guesses[question] is None:
        print(f"fill in your prediction at the top and run both cells again: {question}")
    else:
        print(f"{question}: you predicted {my_guesses[question]:g}, measured {measured:,.4g}")


# %% [markdown]
# ## A file, opened by hand
#
# We save the trained model `small` as it is shipped, in int8, and look at the bytes. The format is *safetensors*, the usual one
# for open weights. It has three parts: eight bytes with a length, so many bytes of JSON, then numbers.

# %%
small, tokenizer, config = hub.load_pretrained("small")
raw = (hub.save(small, work / "small", tokenizer) / "model.safetensors").read_bytes()
length = int.from_bytes(raw[:8], "little")
header = json.loads(raw[8 : 8 + length])
names = [name for name in header if name != "__metadata__"]
print(f"{len(raw):,} bytes: 8 of a length, {length:,} of JSON, {len(raw) - 8 - length:,} of numbers in {len(names)} tensors")
for name in (names[1], names[-1]):
    print(f"  {name}: {header[name]}")
compare(questions[0], 100 * (8 + length) / len(raw))

# %% [markdown]
# That is all. A tensor has a name, a type, a shape and two offsets. Nothing in the file says what the tensors are *for*: that is
# in `config.json` and in the code of whoever reads it.
#
# ### Exercise: one tensor out of a file

# %%
from minimoe.exercises import check, exercises, hint

exercises()["weights.tensor"]

# %%
def tensor(data, begin, end, shape):
    raise NotImplementedError("not written yet: weights.tensor")


check("weights.tensor", tensor);

# %% [markdown]
# ## A pickle is a program
#
# Older files of weights are *pickles*. A pickle is a list of instructions for Python, and loading it carries them out. We make
# one that claims to be weights. What it does here is harmless: it writes a line.

# %%
class Weights:
    def __reduce__(self):
        return print, ("this line was printed by LOADING a file; it could have deleted your thesis instead",)


(work / "weights.bin").write_bytes(pickle.dumps(Weights()))
loaded = pickle.loads((work / "weights.bin").read_bytes())
print("and what was loaded is", loaded)

# %% [markdown]
# A header of safetensors can only lie. So a loader has to check it, and should do so before it reserves any memory. We save `small` as the library
# *Transformers* would (more on that below), and tell four lies in the header.

# %%
theirs_folder = hub.save(small, work / "transformers", tokenizer, format="huggingface")
theirs_raw = (theirs_folder / "model.safetensors").read_bytes()
theirs_length = int.from_bytes(theirs_raw[:8], "little")
first, control = "model.norm.weight", "nothing, as a control"
lies = {
    control: lambda h: None,
    "offsets beyond the end": lambda h: h[first].update(data_offsets=[0, 10**9]),
    "a larger shape": lambda h: h[first].update(shape=[999]),
    "an unknown type": lambda h: h[first].update(dtype="F7"),
    "a tensor under another name": lambda h: h.update({"model.nrom.weight": h.pop(first)}),
}
for lie, change in lies.items():
    changed = json.loads(theirs_raw[8 : 8 + theirs_length])
    change(changed)
    text = json.dumps(changed, separators=(",", ":")).encode().ljust(theirs_length)  # else its length gives it away
    assert len(text) == theirs_length
    (theirs_folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + theirs_raw[8 + theirs_length :])
    try:
        hub.load(theirs_folder)
        assert lie == control, f"{lie}: was believed"
        print(f"{lie}: accepted")
    except minimoe.UserError as error:
        assert lie != control, error
        print(f"{lie}: refused\n    {str(error).partition('/transformers/')[2][:170]}")
(theirs_folder / "model.safetensors").write_bytes(theirs_raw);

# %% [markdown]
# ## Several files
#
# V4-Flash is published in 46 files, V4-Pro in 64. An index says which tensor is in which file. Transformers, and our export to its
# layout, fill one file after the other.
#
# ### Exercise: which file a tensor goes into

# %%
exercises()["weights.shards"]

# %%
def shards(sizes, limit):
    raise NotImplementedError("not written yet: weights.shards")


check("weights.shards", shards);

# %% [markdown]
# ## What a format weighs
#
# The same model in five formats of ours, on disk. Recipe `mxfp4` packs the experts into four bits and leaves the rest in float32.
# Recipe `fp8` has the matrices of attention and experts in FP8, as DeepSeek-V3's files, and the embedding in float32, which `int8`
# rounds too: so its file is the larger one. Recipe `v4` stores experts in FP4, attention and shared expert in FP8, and the rest in bfloat16, as the report says of
# DeepSeek-V4. The last column counts the words (tokens) of one greedy text that differ from float32. (`small` is shipped in int8.
# Its float32 form holds the values of those codes, so int8 loses nothing here a second time.)

# %%
prompt = jnp.asarray([tokenizer.encode("In the beginning")])
new_words = 40


def text_of(model):
    return np.asarray(generate(model, prompt, new_words, temperature=0))[0]


floats = dequantize_model(small)
written = text_of(floats)
sizes, lines = {}, ["| format | bytes on disk | of float32 | words that differ |", "| --- | ---: | ---: | ---: |"]
for recipe in (None, "int8", "fp8", "mxfp4", "v4"):
    model = floats if recipe is None else quantize_model(floats, recipe)
    folder = hub.save(model, work / f"as-{recipe}", tokenizer)
    sizes[recipe or "float32"] = (folder / "model.safetensors").stat().st_size
    differ = int((text_of(hub.load(folder)[0]) != written).sum())
    share = sizes[recipe or "float32"] / sizes["float32"]
    lines.append(f"| {recipe or 'float32'} | {sizes[recipe or 'float32']:,} | {share:.1%} | {differ} of {new_words} |")
display(Markdown("\n".join(lines)))
compare(questions[1], 100 * sizes["v4"] / sizes["float32"])

# %% [markdown]
# The first word that changes drags the rest along, because each word is chosen after those before it. So the last column says
# *whether* a text changed, not how good it is. Lesson 04 measures quality.
#
# ## Published FP8
#
# DeepSeek publishes matrices in FP8 with one scale for each square of 128 x 128 numbers. In V3 the scales are float32 and called
# `weight_scale_inv`. The name has misled many. In V4 they are powers of two, one byte each, and called `scale`.
#
# ### Exercise: published FP8 weights

# %%
exercises()["weights.blocks"]

# %%
def dequantize(values, scale_inv, block):
    raise NotImplementedError("not written yet: weights.blocks")


check("weights.blocks", dequantize);

# %% [markdown]
# ## In another program: Transformers
#
# *Transformers* is the library that most people load open weights with. It knows families of models by name. Ours has
# the structure of one of them: `small` has the parts of GLM-4.5. So its tensors get the names of that family, and matrices are transposed,
# since PyTorch multiplies from the other side. The table is in `minimoe/hub/layouts/`, and it is read in both directions.

# %%
print(sorted(path.name for path in theirs_folder.iterdir()))
back, _, _ = hub.load(theirs_folder)
equal = all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(floats), jax.tree.leaves(back), strict=True))
print("and read back, every number is the same:", equal)
have_transformers = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "accelerate"))
if have_transformers:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    other = transformers.AutoModelForCausalLM.from_pretrained(theirs_folder, dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 64))
    with torch.no_grad():
        found = other(torch.from_numpy(tokens)).logits.numpy()
    ours = np.asarray(floats(jnp.asarray(tokens))[0])
    print(f"{type(other).__name__}: logits differ by {np.abs(found - ours).max() / ours.std():.1e} of their spread")
else:
    print('Transformers is not installed here; pip install "minimoe[interop]" and run this cell again')

# %% [markdown]
# ### The published formats, written by us
#
# On the command line this is `minimoe export small --dtype fp8 --out small-fp8`. Matrices become codes with scales, in the blocks
# of the exercise. Embedding, head, norms and routers become bfloat16, as in published files. Transformers knows this layout. It
# has no fast arithmetic for it on a CPU, so it multiplies codes by scales while it loads, and keeps bfloat16.

# %%
def tensors_in(folder):
    """The header of a folder's weights: dtype, shape and place of each tensor."""
    data = (folder / "model.safetensors").read_bytes()
    found = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: about for name, about in found.items() if name != "__metadata__"}


published = hub.to_transformers(small, work / "fp8", tokenizer, dtype="fp8")
for name, about in tensors_in(published).items():
    if "layers.0.mlp.experts.0.down_proj" in name or "embed" in name:
        print(f"{name}: {about['dtype']} {about['shape']}")
if have_transformers:
    rounded = hub.load(published)[0]  # the values of the codes; now in bfloat16, as there
    for name, leaf in named_leaves(rounded).items():
        if not name.endswith("router.bias"):  # stays float32 there
            leaf[...] = leaf[...].astype("bfloat16").astype("float32")
    other_fp8 = transformers.AutoModelForCausalLM.from_pretrained(published).eval().float()
    with torch.no_grad():
        found = other_fp8(torch.from_numpy(tokens)).logits.numpy()
    wanted = np.asarray(rounded(jnp.asarray(tokens))[0])
    fp8_error = float(np.abs(found - wanted).max() / wanted.std())
    print(f"Transformers, from FP8: logits differ by {fp8_error:.1e} of their spread")
    print(f"what the rounding to FP8 and bfloat16 itself changes: up to {np.abs(wanted - ours).max() / ours.std():.1e} of it")

# %% [markdown]
# What to see: Transformers reads the weights that we meant. The last number is much larger. It is what rounding costs, not what
# the file costs: the largest of a quarter of a million differences, on random tokens. Where rounding changes the choice of an
# expert, all logits of a token change. Lesson 04 measures what FP8 does to quality.
#
# V4 goes one step further: its experts are FP4, two codes in a byte, with a one-byte scale for 32 of them (`--dtype fp4`). The
# layout belongs to V4's family, so we take `v4-nano`, our small model with V4's block. Codes that are read and written again
# must not change. So we ask for equal *bytes*.

# %%
v4_nano, v4_tokenizer, _ = hub.load_pretrained("v4-nano")
first_file = hub.to_transformers(v4_nano, work / "fp4", v4_tokenizer, dtype="fp4")
for name, about in tensors_in(first_file).items():
    if "layers.0.ffn.experts.0.w1" in name:
        print(f"{name}: {about['dtype']} {about['shape']}")
kept = hub.from_transformers(first_file, keep_codes=True)
second_file = hub.to_transformers(kept, work / "fp4-again", v4_tokenizer, dtype="fp4")
same_bytes = (first_file / "model.safetensors").read_bytes() == (second_file / "model.safetensors").read_bytes()
print("read, kept as codes and written again, the file is the same byte for byte:", same_bytes)

# %% [markdown]
# ## In another program: llama.cpp
#
# *llama.cpp* runs open weights on laptops and phones. Its format is *GGUF*: one file that holds weights, sizes and vocabulary.
# `minimoe export nano --format gguf --out nano-gguf` writes it. Its int8 is called Q8_0 and has a scale for each 32 numbers.
# llama.cpp has two architectures that fit ours, so not every model can be written. What cannot be said exactly is refused.

# %%
have_gguf = importlib.util.find_spec("gguf") is not None
shelf = {"nano": hub.load_pretrained("nano"), "small": (small, tokenizer, config), "v4-nano": (v4_nano, v4_tokenizer, None)}
files = {f"Transformers, {dtype}": (hub.to_transformers, dtype) for dtype in ("float32", "bfloat16", "fp8", "fp4")}
if have_gguf:
    from minimoe.export import export_gguf

    files |= {f"GGUF, {dtype}": (export_gguf, dtype) for dtype in ("float32", "bfloat16", "int8")}
else:
    print('gguf is not installed here; pip install "minimoe[export]" and run this cell again')
weighed, refused = {}, {}
for name, (model, its_tokenizer, _) in shelf.items():
    for file, (write, dtype) in files.items():
        try:
            folder = write(model, work / f"{name} {file}", its_tokenizer, dtype=dtype)
            weighed[name, file] = sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf"))
        except minimoe.UserError as error:
            refused[file, str(error)] = [*refused.get((file, str(error)), []), name]
head = [f"| bytes on disk | {' | '.join(shelf)} |", "| --- |" + " ---: |" * len(shelf)]
cells = {file: [f"{weighed[name, file]:,}" if (name, file) in weighed else "refused" for name in shelf] for file in files}
display(Markdown("\n".join([*head, *(f"| {file} | {' | '.join(row)} |" for file, row in cells.items())])))
fp8_share = weighed["small", "Transformers, fp8"] / weighed["small", "Transformers, float32"]
compare(questions[3], 100 * fp8_share)

# %%
for (file, reason), names in refused.items():
    print(f"{file}, {' and '.join(names)}: {reason}")
if have_gguf:
    print("\n".join((work / "nano GGUF, int8" / "README.md").read_text(encoding="utf-8").splitlines()[2:9]))

# %% [markdown]
# What to see: bfloat16 is half of float32. FP8 is more than a quarter, because the embedding stays bfloat16: in a model as small
# as `nano` it is a large part. FP4 is smaller still, though only the experts change. The scales of Q8_0 add a sixteenth to its
# codes: two bytes for every 32.
#
# llama.cpp itself is not installed with this package, so it was tested separately: `tests/llama_cpp_answers.py` in the repository runs
# such files in it. What it answered for `nano` in float32 is recorded. A test compares our logits with its logits, to a
# ten-thousandth of their spread, and our greedy text with its text, word for word.
#
# ## In another program: ONNX Runtime
#
# ONNX is a file of operators. About 200 are defined, each with a fixed meaning. Runtimes for it exist for phones, browsers and most accelerators;
# one of them is for Huawei's Ascend. Our whole model is written in about thirty of these operators, routing included:
# `minimoe/export/onnx_model.py` is the model once more, on a few screens.

# %%
have_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
if have_onnx:
    from minimoe.export import OnnxModel, export_onnx

    theirs = OnnxModel(export_onnx(small, work / "onnx", tokenizer))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 64))
    ours = np.asarray(floats(jnp.asarray(tokens))[0])
    onnx_error = float(np.abs(theirs.logits(tokens) - ours).max() / ours.std())
    onnx_text = theirs.generate(prompt[0].tolist(), new_words)
    onnx_differ = int((np.array(onnx_text) != written).sum())
    operators = {node.op_type for node in __import__("onnx").load(work / "onnx" / "model.onnx").graph.node}
    print(f"{len(operators)} different operators, opset 18, none tied to one vendor")
    print(f"logits: largest difference {onnx_error:.1e} of their spread; words that differ: {onnx_differ} of {new_words}")
    print(tokenizer.decode(onnx_text)[:120])
    compare(questions[2], onnx_differ)
else:
    print('onnx and onnxruntime are not installed here; pip install "minimoe[export]" and run this cell again')

# %% [markdown]
# What to see: the program knows nothing of JAX or of us, and it writes the same text. The logits differ in the last digits, since
# it adds in another order.
#
# ## One program for four back ends
#
# JAX translates a model into *StableHLO*, a small language of array operations. A compiler for each chip takes it from there. We
# lower three programs for four back ends at once: the whole text, one step of decoding, one step of **training**.

# %%
have_flatbuffers = importlib.util.find_spec("flatbuffers") is not None
if have_flatbuffers:
    from minimoe.export import StableHLOModel, export_stablehlo
    from minimoe.training import Recipe

    nano, nano_tokenizer, _ = hub.load_pretrained("nano")
    folder = export_stablehlo(nano, work / "stablehlo", nano_tokenizer, length=64, recipe=Recipe.preset("nano", steps=10))
    program = StableHLOModel(folder)
    lines = ["| program | bytes | lowered for | run here |", "| --- | ---: | --- | --- |"]
    for name, lowered in program.programs.items():
        size = (folder / f"{name}.stablehlo").stat().st_size
        lines.append(f"| {name} | {size:,} | {', '.join(lowered.platforms)} | {jax.default_backend()} |")
    display(Markdown("\n".join(lines)))
    ids = nano_tokenizer.encode("In the beginning")
    same = program.generate(ids, 20) == generate(nano, jnp.asarray([ids]), 20, temperature=0)[0].tolist()
    print("the reloaded step writes the text that the model writes:", same)
    lines_of_program = program.programs["forward"].mlir_module().splitlines()
    products = [line.split(":", 1)[1].strip() for line in lines_of_program if "stablehlo.dot_general" in line]
    print(f"{len(lines_of_program):,} lines, {len(products)} products of matrices; the last one is the output head:\n  {products[-1][:110]}")
else:
    print('flatbuffers is not installed here; pip install "minimoe[export]" and run this cell again')

# %% [markdown]
# Look at the last two columns. All programs were *lowered* for four back ends. They were *run* on one. Lowering proves that the
# program needs nothing which only one chip has. It does not prove that the chip's compiler accepts it, that the answer is right
# there, or that it is fast. A sentence about a chip needs a run on that chip.
#
# For a reader who has another accelerator, `notebooks/OTHER_CHIPS.md` says which file to take and what we could not check.
#
# ## In a browser, with nothing installed
#
# The last program is a web page. It holds the int8 codes of `nano`, its tokenizer, and the model once more in a few hundred lines
# of JavaScript. It needs no network and no server. Type into it: each token shows which experts it takes.

# %%
from IPython.display import IFrame

from minimoe.microscope.page import samples

page = Path("microscope.html")  # beside this notebook
nano, nano_tokenizer, _ = hub.load_pretrained("nano")
if not page.is_file():
    from minimoe.microscope import write_page

    write_page(page, nano, nano_tokenizer, name="nano")
print(f"{page}: {page.stat().st_size:,} bytes; if no page appears below, open this file in a browser")
IFrame(page.as_posix(), width="100%", height=820)

# %% [markdown]
# **Try this.** Choose an expert under "Load by expert" and move its selection bias. Its share of the tokens changes. Then take FP4
# under "Arithmetic" and read under "What changed" how many choices of experts differ, and how few words.
#
# The page has no other arithmetic than float64. Its logits for `float`, `int8` and `FP4` are those of JAX to a thousandth. `int8 x
# int8`, which rounds activations too, cannot be compared so closely, and the reason is worth a look:

# %%
plain = dequantize_model(nano)
ids = jnp.asarray([nano_tokenizer.encode(sample["text"])[:48] for sample in samples()])  # six domains
for name, model in {"float": plain, "int8 x int8": quantize_model(plain, "int8-w8a8")}.items():
    whole = jax.jit(lambda model, ids: model(ids)[0])(model, ids)
    apart = model(ids)[0]  # the same operations, compiled one by one
    difference = float(jnp.abs(whole - apart).max())
    print(f"{name}: JAX against itself differs by up to {difference:.1e} in a logit; their spread is {float(whole.std()):.1f}")

# %% [markdown]
# Both lines compare the same formulas with the same weights. They differ in the last digit of a sum, since its terms are added in
# another order. Rounding is a step: a value close to the middle of two whole numbers goes up in one program and down in the other.
# Later layers widen that. So two correct programs with rounded activations agree in what they write nearly always, and in their
# logits only to a digit or two. Whoever ports such a model must test it against float64, as we do, and not against one run.
#
# ## The numbers of this lesson
#
# Loading and saving, three times each and in turn; the fastest counts. "Float32 of Transformers" is their layout, read and
# written by us. The speeds in a browser, where one is installed, are without drawing.

# %%
def fastest(jobs, rounds=3):
    took = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            took[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in took.items()}


jobs = {
    "load, our int8": lambda: jax.block_until_ready(nnx.state(hub.load(work / "small")[0])),
    "load, float32 of Transformers": lambda: jax.block_until_ready(nnx.state(hub.load(theirs_folder)[0])),
    "save, our int8": lambda: hub.save(small, work / "small", tokenizer),
    "save, float32 of Transformers": lambda: hub.save(small, theirs_folder, tokenizer, format="huggingface"),
}
if have_transformers:
    kind = transformers.AutoModelForCausalLM
    jobs["load, by Transformers itself"] = lambda: kind.from_pretrained(theirs_folder, dtype=torch.float32)
    jobs["save, by Transformers itself"] = lambda: other.save_pretrained(work / "by-transformers")
lines = [f"| `small`: {name} | {seconds:.2f} s |" for name, seconds in fastest(jobs).items()]

# %%
from minimoe.microscope.browser import find_browser, measure_page

if find_browser() is None:
    lines.append("| the page in a browser | no Chromium or Chrome is installed here |")
else:
    seen = measure_page(page, seconds=240)
    lines.append(f"| page: bytes | {seen['bytes']:,} |")
    lines.append(f"| page: first text on the screen, {seen['browser']} | {seen['first_paint_ms'] / 1000:.2f} s |")
    lines.append(f"| page: a text of 600 characters read and drawn | {seen['drawn_ms'] / 1000:.2f} s |")
    for mode, speed in seen["tokens_per_second"].items():
        lines.append(f"| page: `nano` in {mode}, one core | {speed:.0f} tokens/s |")
if have_onnx:
    lines.append(f"| ONNX Runtime: logits of `small` | {onnx_error:.0e} of their spread |")
display(Markdown("\n".join([f"| measured here, {os.cpu_count()} cores | |", "| --- | ---: |", *lines])))

# %% [markdown]
# The bytes of each format are in the tables further up. Compare the times with each other, and run the cell on your own machine.
#
# ## What a licence and a card are for
#
# Weights without a licence may be looked at, but not used. Each shipped model has a card: what it was trained on, how, what it
# reaches, what it cannot. Here is the beginning of one.

# %%
card = Path(hub.__file__).parent / "weights" / "small" / "MODEL_CARD.md"
display(Markdown("\n".join(f"> {line}" for line in card.read_text(encoding="utf-8").splitlines()[:12])))

# %% [markdown]
# ## Verdicts

# %%
ran = f"ONNX Runtime: logits within {onnx_error:.0e} of their spread, {onnx_differ} of {new_words} words different. " if have_onnx else ""
if have_transformers:
    ran += f"Transformers, from the published FP8 layout: {fp8_error:.0e}; that file is {fp8_share:.1%} of float32. "
plots.verdict(
    claim='"Open-weight."',
    means="Everybody can download the numbers, and a program by somebody else can run them.",
    measured=f"Ours: one file, {100 * (8 + length) / len(raw):.2f}% of it not numbers. {ran}"
    f"Recipe v4 stores the same model in {sizes['v4'] / sizes['float32']:.1%} of float32. The files that DeepSeek published "
    "were not loaded here: they do not fit.",
    says="holds for the numbers of our files, which other programs read; those of V4 were not tried, and its data and recipe are not open",
    would_change="A licence that forbids use, or a layout that only its maker's program reads.",
)

# %%
plots.verdict(
    claim='"Runs on Huawei chips."',
    means="An Ascend runs the model, with right answers and at a useful speed.",
    measured="Lowered for cpu, cuda, rocm and tpu; run on this machine's CPU alone. ONNX, for which an Ascend runtime exists, "
    "was run on the CPU. The report on V4 says only that its expert parallelism was validated on NVIDIA and on Ascend.",
    says="not testable here: our programs need nothing that one maker alone has, and nobody here has an Ascend",
    would_change="One run of either file on an Ascend, with its logits beside ours.",
)

# %% [markdown]
# ## What to distrust
#
# - **Equal text is a weak test.** Greedy text stays equal under small errors. The largest difference of logits is the stronger
#   number, and it is on random tokens of one model.
# - **Our files are small.** Nothing here says what loading 860 GB is like.
# - **"Open" has other parts.** Data, recipe and the right to use are not in a tensor file.

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
