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
# # 05 · Distillation: a small model learns from a larger one
#
# A text says which word came. A teacher says how likely *every* word was. This lesson trains small models on the second
# kind of knowledge, in four ways, and asks what passes from teacher to student: fluency, facts, reasoning, mistakes.
#
# | | |
# | --- | --- |
# | **You should know** | notebook 00; what cross-entropy is; logarithms of probabilities |
# | **You will be able to** | write a distillation loss and say what T², the direction of the KL and the mask do; distil from live logits, from a cache, from sampled text and on the student's own text; read a claim such as "compresses reasoning" and say what it must be compared with |
# | **Time** | about four minutes on two CPU cores, about a minute with `MINIMOE_FAST=1` (then the students trained here have learnt nothing) |

# %%
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np

import minimoe
from minimoe import plots
from minimoe.host import enable_compilation_cache

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 8 if FAST else 120
began = time.monotonic()
enable_compilation_cache()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; two students of {STEPS} steps;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# "Distillation from larger teachers compresses reasoning into an efficient package": compresses *what*, measured how,
# and against which student? One that had the same text, the same number of tokens, the same minutes?
#
# **Predict before you run.** Your guesses come back beside the numbers.

# %%
my_guesses = {
    "share of the teacher's probability in its 32 best words": 0.80,
    "share of the gap in bits per byte that a teacher closes at equal tokens": 0.30,
    "share of the gap on reasoning that a teacher closes at equal tokens": 0.50,
    "share of reasoning problems right: student that only saw answers": 0.10,
    "share of reasoning problems right: student that read the teacher's steps": 0.30,
}
guessed = list(my_guesses.values())

# %% [markdown]
# ## By hand: three words
#
# After "the cat sat on the", a text has *mat*. A teacher says mat 0.7, rug 0.2, moon 0.1. A student says 0.5, 0.25, 0.25.
# On paper: the cross-entropy of the student with the text; then with the teacher; then subtract the teacher's own
# entropy. What is left is the divergence $\mathrm{KL}(p\,\|\,q)$.

# %%
teacher = np.array([0.7, 0.2, 0.1])
student = np.array([0.5, 0.25, 0.25])

hard = -np.log(student[0])
soft = -(teacher * np.log(student)).sum()
entropy = -(teacher * np.log(teacher)).sum()
print(f"cross-entropy with the text {hard:.4f}, with the teacher {soft:.4f}; entropy of the teacher {entropy:.4f} nats")
print(f"KL(teacher || student) = {soft - entropy:.4f}")
print("slope for the student's logits, text:   ", (student - np.array([1.0, 0.0, 0.0])).round(2))
print("slope for the student's logits, teacher:", (student - teacher).round(2))

# %% [markdown]
# > **Key observation.** The text pushes *rug* and *moon* down alike. The teacher pushes only *moon*. One position of text
# > carries one word; one position of a teacher carries an order of all words. That is all that a soft target knows more.
#
# ## The formula
#
# With teacher logits $z^p$, student logits $z^q$ and a temperature $T$ that divides both,
#
# $$L=(1-\alpha)\,\mathrm{CE}(y,q)+\alpha\,T^2\,\mathrm{KL}\!\left(p^T\,\|\,q^T\right),\qquad p^T=\mathrm{softmax}(z^p/T)$$
#
# (Hinton, Vinyals and Dean, arXiv 1503.02531, section 2). Every loss of `minimoe.distill` gives one number a position,
# and `masked_mean` takes the mean over real positions only. The same three words through the library:

# %%
from minimoe import distill

logits = {"teacher": jnp.log(jnp.asarray(teacher, jnp.float32)), "student": jnp.log(jnp.asarray(student, jnp.float32))}
print(f"forward_kl {distill.forward_kl(logits['student'], logits['teacher']):.4f}, by hand {soft - entropy:.4f}")
print(f"hinton_kd with alpha=0 {distill.hinton_kd(logits['student'], logits['teacher'], jnp.array(0), alpha=0.0):.4f}, by hand {hard:.4f}")

# %% [markdown]
# ## The teacher
#
# It comes with the package: `small`, which has gone on with text and generated reasoning problems, half and half. Its
# card tells how it was made and what it scores. It is stored in int8; to ask it for logits by the thousand we decode it.

# %%
from minimoe import hub, load_pretrained, quant
from minimoe.data import documents, evaluation_documents, windows

stored, tokenizer, config = load_pretrained("teacher")
expert = quant.dequantize_model(stored)
novice = quant.dequantize_model(load_pretrained("nano")[0])
print("\n".join(hub.card("teacher").splitlines()[2:18]))

# %% [markdown]
# One position of text that neither model was trained on. What comes next? The ten words that the teacher likes best, and
# what the untaught `nano` thinks of the same ten.

# %%
validation = documents(split="val")
quick = evaluation_documents(validation, "quick")
part = quick[:: 4 if FAST else 2]
austen = next(document for document in quick if document.domain == "austen")
ids = [tokenizer.eot_id, *tokenizer.encode(austen.text)][:96]


@flax.nnx.jit
def next_logits(model, tokens):
    return model(tokens)[0]


def log_probs(model, ids):
    return np.asarray(jax.nn.log_softmax(next_logits(model, jnp.asarray(ids)[None])[0]), np.float64)


said = {"teacher": log_probs(expert, ids), "nano": log_probs(novice, ids)}
entropies = -(np.exp(said["teacher"]) * said["teacher"]).sum(axis=1)
place = 40 + int(np.argmin(np.abs(entropies[40:94] - 2.0)))  # one where the teacher wavers between a few words
best = np.argsort(-said["teacher"][place])[:10]
words = [tokenizer.decode([int(token)]) for token in best]
true = ids[place + 1]
print(repr(tokenizer.decode(ids[place - 24 : place + 1])), "->", repr(tokenizer.decode([true])))
plots.next_words(
    words, {name: np.exp(row[place, best]) for name, row in said.items()},
    truth=list(best).index(true) if true in best else None, title="Figure 1: what comes next?",
)

# %% [markdown]
# Look below the first words: for the text they are all equally wrong. For the teacher they are a ranking of what fits the
# grammar and the scene. A temperature above 1 turns that ranking up:

# %%
plots.temperatures(
    words,
    {T: np.exp(row := said["teacher"][place] / T)[best] / np.exp(row).sum() for T in (0.5, 1.0, 2.0, 4.0)},
    "Figure 2: the same logits at four temperatures",
)

# %% [markdown]
# ### Why T²
#
# The slope of the KL at temperature T is $(q^T-p^T)/T$, and at high T the difference itself shrinks as 1/T. Measured, on
# all positions of that text:

# %%
from minimoe.distill import forward_kl

z = {name: jnp.asarray(row[:95], jnp.float32) for name, row in said.items()}


def slope(T):
    gradient = jax.grad(lambda q: forward_kl(q, z["teacher"], temperature=T).mean())(z["nano"])
    return float(jnp.abs(gradient).sum())


sizes = {T: slope(T) for T in (1.0, 2.0, 4.0, 8.0, 16.0)}
for T, size in sizes.items():
    print(f"T={T:4.0f}: size of the slope {size:.5f}, times T {T * size:.5f}, times T^2 {T * T * size:.5f}")

# %% [markdown]
# > **Key observation.** Without T² the teacher falls silent as the temperature rises, and whoever tunes alpha and T
# > together is really tuning one of them. With T² the slope settles. Exercise 1 fails you for leaving it out.
#
# ## Which way round?
#
# $\mathrm{KL}(p\,\|\,q)=\sum_v p_v\log\frac{p_v}{q_v}$ takes its mean under the teacher: the student must put mass
# wherever the teacher does. $\mathrm{KL}(q\,\|\,p)$ takes it under the student: it must not say what the teacher would
# not. With room for everything both end at $p=q$. A student that *cannot* be the teacher has to choose. Here is one: a
# single bell curve, fitted to two.

# %%
import optax

x = jnp.linspace(-6, 6, 601)


def bell(mean, width):
    density = jnp.exp(-0.5 * ((x - mean) / width) ** 2)
    return density / density.sum()


two = 0.65 * bell(-1.8, 0.7) + 0.35 * bell(2.2, 0.6)


def fit(loss, start, steps=400):
    """Mean and log-width that minimise a divergence from two humps."""
    def objective(v):
        return loss(jnp.log(bell(v[0], jnp.exp(v[1])) + 1e-12), jnp.log(two + 1e-12))

    optimizer = optax.adam(0.05)
    def step(carry, _):
        v, state = carry
        updates, state = optimizer.update(jax.grad(objective)(v), state)
        return (optax.apply_updates(v, updates), state), None

    start = jnp.array(start)
    (v, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return bell(v[0], jnp.exp(v[1])), float(v[0]), float(jnp.exp(v[1]))


losses = {"forward KL": distill.forward_kl, "reverse KL": distill.reverse_kl,
          "Jensen-Shannon": lambda q, p: distill.generalized_jsd(q, p, 0.5)}  # fmt: skip
fits = {name: fit(loss, [-0.5, 0.0]) for name, loss in losses.items()}
for name, (_, mean, width) in fits.items():
    print(f"{name:15} mean {mean:+.2f}, width {width:.2f}")
plots.two_modes(np.asarray(x), np.asarray(two), {name: np.asarray(curve) for name, (curve, *_) in fits.items()},
                "Figure 3: one hump for two")  # fmt: skip

# %% [markdown]
# > **Key observation.** Forward KL *covers*: its hump is widest between the two, where the teacher says almost nothing.
# > Reverse KL *chooses*: it sits on one and ignores the other. For text: forward KL makes a student that may say strange
# > things, reverse KL one that says fewer things.
#
# ### The same on a language model
#
# From `nano`, a few steps towards the teacher with each, on the same batches. Then on held-out text: both divergences, the
# entropy of what the student says, and how much of its probability goes to words to which the teacher gives less than one
# in ten thousand.

# %%
from minimoe.data import TrainingData, task_documents, training_data
from minimoe.training import Recipe, RunConfig, evaluate

text = training_data(documents(), tokenizer)
few = 6 if FAST else 40
recipe = Recipe(steps=few, batch_size=8, learning_rate=1e-3, warmup_steps=4, checkpoint_every=0, eval_every=0)
run = RunConfig(novice.config, recipe, {"name": "minimoe-corpus"}, tokenizer.name)
held_out = windows(part, tokenizer, config.context_length)
tokens, where = jnp.asarray(held_out.tokens[:24]), jnp.asarray(held_out.where[:24])


@flax.nnx.jit
def character(student, teacher):
    q, p = student(tokens, where=where)[0], teacher(tokens, where=where)[0]
    log_q, log_p = jax.nn.log_softmax(q), jax.nn.log_softmax(p)
    prob = jnp.exp(log_q)
    values = {
        "KL(p||q)": distill.forward_kl(q, p, where=where),
        "KL(q||p)": distill.reverse_kl(q, p, where=where),
        "entropy": -(prob * log_q).sum(axis=-1),
        "on words the teacher excludes": jnp.where(log_p < jnp.log(1e-4), prob, 0.0).sum(axis=-1),
    }
    return {name: distill.masked_mean(value, where) for name, value in values.items()}


def towards(divergence):
    way = distill.DistillRecipe(divergence=divergence, alpha=1.0)
    return distill.distill(run, way, expert, text, [], tokenizer, prepare=lambda fresh: novice_copy()).model


def novice_copy():
    return flax.nnx.clone(novice)


characters = {"nano, untaught": character(novice, expert)}
characters |= {name: character(towards(name), expert) for name in ("forward_kl", "reverse_kl")}
for name, row in characters.items():
    print(f"{name:15}", ", ".join(f"{what} {float(value):.3f}" for what, value in row.items()))

# %% [markdown]
# > **Key observation.** Each student is better by the measure that it was trained on. Compare the last two columns: which
# > one is surer of itself, and which one more often says what the teacher would never say?
#
# ## A teacher on disk
#
# A teacher that is asked for every batch of every student is the larger part of the bill. Ask it once and keep its k best
# words: 2 bytes for the word, 2 for its log-probability, and one number for the mass of all others, the *tail*.

# %%
import tempfile
from pathlib import Path

flat = np.exp(said["teacher"][:95])
ranked = -np.sort(-flat, axis=1)
for k in (1, 4, 16, 32, 64, 256):
    held = ranked[:, :k].sum(axis=1)
    print(f"k={k:3}: {held.mean():.1%} of the probability on average, {held.min():.1%} at the worst position; "
          f"{4 * k + 2} bytes a token, all logits in float32 {4 * config.vocab_size:,}")
print(f"k=32 holds {ranked[:, :32].sum(axis=1).mean():.1%}, you guessed {guessed[0]:.0%}")

# %%
few_steps = RunConfig(novice.config, Recipe(steps=2 if FAST else 8, batch_size=8), {}, tokenizer.name)
way = distill.DistillRecipe(top_k=32, alpha=1.0)
with tempfile.TemporaryDirectory() as folder:
    cache = distill.cache_teacher(Path(folder) / "cache", few_steps, way, expert, text, tokenizer)
    on_disk = sum(path.stat().st_size for path in (Path(folder) / "cache").iterdir())
    some = cache.batch(0)
batch = text.batch(0, 0, 8, config.context_length)
positions = batch.tokens.size * few_steps.recipe.steps
print(f"{positions:,} positions, {on_disk:,} bytes in files: {on_disk / positions:.1f} a token")
q, p = (next_logits(model, jnp.asarray(batch.tokens)) for model in (novice, expert))
exact = float(distill.forward_kl(q, p).mean())
answers = [jnp.asarray(np.asarray(part)) for part in (some.values, some.ids, some.tail)]
kept = float(distill.topk_kl(q, *answers).mean())
forgot = float(distill.topk_kl(q, *answers, renormalize=True).mean())
print(f"KL from all logits {exact:.4f}; from 32 words and the tail {kept:.4f}; from 32 words as if there were no others {forgot:.4f}")

# %% [markdown]
# > **Key observation.** With a tail, thirty-two words give nearly the whole divergence, in a sixtieth of the bytes. To
# > act as if the 32 were everything is another loss: it never tells the student how *little* the other words deserve.
# > (Exercise 2.) DeepSeek-V4 keeps the teacher's last hidden state instead, and computes all logits from it again
# > (section 5.2.2 of the report): at a vocabulary of 129,280, that is the smaller thing.
#
# ## Alone and taught
#
# Two fresh students of the shape of `nano`, the same seed, the same batches of text: one with cross-entropy, one with nine
# tenths of its loss from the teacher.

# %%
from minimoe.config import ModelConfig
from minimoe.training import train

nano = ModelConfig.preset("nano")
students_recipe = Recipe.preset("nano", steps=STEPS, eval_every=0 if FAST else STEPS // 3, checkpoint_every=0)
students_run = RunConfig(nano, students_recipe, {"name": "minimoe-corpus"}, tokenizer.name)
ways = {"alone": distill.DistillRecipe(alpha=0.0), "taught": distill.DistillRecipe(alpha=0.9)}
live, seconds = {}, {}
for name, way in ways.items():
    start = time.monotonic()
    live[name] = distill.distill(students_run, way, expert, text, part, tokenizer)
    seconds[name] = time.monotonic() - start
teacher_bits = evaluate(expert, part, tokenizer).bits_per_byte
for name, result in live.items():
    print(f"{name:6} {result.evaluation.bits_per_byte:.4f} bits per byte after {STEPS} steps, {seconds[name]:.0f} s")
print(f"teacher {teacher_bits:.4f}")

# %%
curves = {
    name: [[(r["tokens"], r["bits_per_byte"]) for r in result.records if r["kind"] == "eval"]]
    for name, result in live.items()
}
plots.gap_over_tokens(curves, teacher_bits, "Figure 4: computed here, one seed, part of the quick text")

# %% [markdown]
# > **Key observation.** The taught student pays for the teacher's forward pass, so its step takes longer: look at the
# > seconds. "At equal tokens" and "at equal minutes" are two different comparisons, and a teacher on disk changes only the
# > second.
#
# ## Longer, with three seeds
#
# The rest is **recorded**: `minimoe lab run distillation` (`minimoe/records/distillation.json`). Students of the shape of
# `nano`, 1.2 million tokens each, half text and half reasoning problems, scored on all validation text. The ways:
#
# - `alone`: cross-entropy on text and on problems with the true steps
# - `forward-kl`: the same batches, and the teacher's logits
# - `on-policy`: as before, but in a quarter of the steps the student writes and the teacher judges every word of it
# - `sampled`: text as it is, but the problems as the *teacher* solves them; cross-entropy, no logits
# - `direct`: problems with answers and no steps; no teacher

# %%
from minimoe.cli.lab import read_record
from minimoe.plots.gaps import share_closed


def by_way(runs):
    """Runs of one way together, seeds in order."""
    found = {}
    for name, one in runs.items():
        found.setdefault(name.rpartition("-")[0], []).append(one)
    return found


def text_bits(one):
    return one["full"]["bits_per_byte"]


recorded = by_way(read_record("distillation")["runs"])
master = read_record("teacher")["runs"]["teacher"]
alone = np.mean([text_bits(one) for one in recorded["alone"]])
rows = []
for name, runs in recorded.items():
    values = [text_bits(one) for one in runs]
    spent = np.mean([one["train_seconds"] for one in runs])
    rows.append({"name": name, "mean": float(np.mean(values)), "low": min(values), "high": max(values), "seconds": float(spent)})
    closed = share_closed(rows[-1]["mean"], alone, text_bits(master))
    print(f"{name:17} {len(values)} seeds, {np.mean(values):.4f} bits per byte ({min(values):.4f} to {max(values):.4f}), "
          f"{runs[0]['tokens'] / 1e6:.2f}M tokens: {closed:.0%} of the gap")
print(f"teacher {text_bits(master):.4f}")
plots.gap_closed(rows, alone, text_bits(master), title="Figure 5: recorded, text, whole validation text")

# %%
taught = np.mean([text_bits(one) for one in recorded["forward-kl"]])
spread = max(np.ptp([text_bits(one) for one in recorded[name]]) for name in ("alone", "forward-kl"))
closed = share_closed(taught, alone, text_bits(master))
verdict = "outside" if alone - taught > spread else "NOT outside"
print(f"forward KL: {taught - alone:+.4f} bits per byte, {verdict} the range between seeds ({spread:.4f}); "
      f"{closed:.0%} of the gap, you guessed {guessed[1]:.0%}")
wanted = {"alone": "student alone", "forward-kl": "forward KL", "on-policy": "on-policy"}
curves = {
    label: [[(r["tokens"], r["bits_per_byte"]) for r in one["curve"] if r["kind"] == "eval"] for one in recorded[name]]
    for name, label in wanted.items()
}
plots.gap_over_tokens(curves, master["quick"]["bits_per_byte"], "Figure 6: recorded, three seeds, quick protocol")

# %% [markdown]
# ### Who gains?
#
# The mean over domains hides them. Against the student alone, domain by domain:

# %%
def domain_changes(name):
    one, other = ({d: np.mean([r["full"]["per_domain"][d] for r in recorded[w]]) for d in master["full"]["per_domain"]}
                  for w in (name, "alone"))  # fmt: skip
    return {domain: float(one[domain] / other[domain] - 1) for domain in one}


changes = {label: domain_changes(name) for name, label in wanted.items() if name != "alone"}
for label, row in changes.items():
    print(f"{label:11}", ", ".join(f"{domain} {change:+.1%}" for domain, change in row.items()))
plots.by_domain(changes, "Figure 7: recorded, change of bits per byte by domain")

# %% [markdown]
# ## A reasoning task
#
# Bits per byte cannot tell whether anything was *worked out*. So: generated problems with an answer that can be checked. A
# problem of level n takes n steps, each of which needs an earlier result. One in ten combinations of operands is kept from
# training, and every validation problem needs one of those.

# %%
from minimoe.data import check_answer, check_steps, problem

for level, family in ((2, "arithmetic"), (3, "words"), (4, "lists")):
    print(problem(3, level=level, split="val", family=family).text())

# %% [markdown]
# The teacher, a student that it taught and comes with the package, and what is right about their answers:

# %%
from minimoe.inference import continue_prompts

pupil = quant.dequantize_model(load_pretrained("student")[0])
asked = [problem(index, level=level, split="val") for level in (1, 3) for index in range(2 if FAST else 4)]
prompts = [[tokenizer.eot_id, *tokenizer.encode(one.prompt())] for one in asked]
written = {}
for name, model in {"teacher": expert, "student": pupil}.items():
    new = continue_prompts(model, prompts, 64, stop_token=tokenizer.eot_id, temperature=0)
    written[name] = [tokenizer.decode([t for t in tokens if t != tokenizer.eot_id]) for tokens in new]
for place, one in enumerate(asked):
    print(one.question, "->", one.answer)
    for name, texts in written.items():
        whole = one.prompt() + texts[place]
        steps = check_steps(one, whole)
        print(f"   {name:8}{texts[place].strip()!r}: {'right' if check_answer(one, whole) else 'wrong'}, "
              f"{steps.num_valid} of {steps.num_steps} steps hold")

# %% [markdown]
# Recorded, all ways, exact match by level: 100 validation problems of each level, greedy. The students of `direct` are
# asked for the answer at once, all others for the steps.

# %%
def answers(one, name):
    return one["tasks"]["direct" if name == "direct" else "worked"]["exact_match"]


def solved(one, name):
    return float(np.mean(list(answers(one, name).values())))


equal_tokens = [name for name in recorded if name != "alone-equal-time"]
shares = {"teacher": {int(level): [share] for level, share in answers(master, "teacher").items()}}
for name in equal_tokens:
    shares[name] = {int(level): [answers(one, name)[level] for one in recorded[name]] for level in answers(master, "teacher")}
for name, row in shares.items():
    print(f"{name:11}", ", ".join(f"level {level} {np.mean(values):.0%}" for level, values in row.items()))
plots.exact_match_by_level(shares, "Figure 8: recorded, problems solved by level")

# %%
baseline = {name: float(np.mean([solved(one, name) for one in recorded[name]])) for name in recorded}
rows = []
for name in recorded:
    values = [solved(one, name) for one in recorded[name]]
    spent = float(np.mean([one["train_seconds"] for one in recorded[name]]))
    rows.append({"name": name, "mean": baseline[name], "low": min(values), "high": max(values), "seconds": spent})
top = solved(master, "teacher")
for start in ("alone", "direct"):
    closed = {name: share_closed(baseline[name], baseline[start], top) for name in equal_tokens if name != start}
    print(f"share of the gap between {start} and teacher:", ", ".join(f"{name} {value:.0%}" for name, value in closed.items()))
print(f"direct {baseline['direct']:.1%} right, you guessed {guessed[3]:.0%}; sampled {baseline['sampled']:.1%}, you guessed {guessed[4]:.0%}")
plots.gap_closed(rows, baseline["alone"], top, "problems solved", "Figure 9: recorded, reasoning, all levels", percent=True)

# %% [markdown]
# > **Key observation.** Which students can chain steps at all, and at which level do they stop? And compare `direct` with
# > `sampled`: the same questions, the same number of tokens, and no logits in either. What passed from the teacher there
# > is *writing down the steps*.
#
# ### Its own mistakes
#
# A student that only ever reads right solutions has never seen what to do after a slip. On-policy training (arXiv
# 2306.13649; DeepSeek-V4, section 5.1.2) lets the student write and asks the teacher about every word of it:
#
# $$L_{\text{OPD}}=\sum_i w_i\;\mathrm{KL}\!\left(q_\theta\,\|\,p_{E_i}\right),\qquad\text{text sampled from } q_\theta$$
#
# with the sum over several teachers. At each position it is the reverse KL over the whole vocabulary, no reward and no
# sampling noise in the loss. What the student above wrote, and how surprised the teacher is by each word:

# %%
place = next((i for i, one in enumerate(asked) if not check_answer(one, one.prompt() + written["student"][i])), 0)
answer = tokenizer.encode(written["student"][place])
ids = [*prompts[place], *answer]
p, q = log_probs(expert, ids), log_probs(pupil, ids)
first = len(prompts[place])
print(asked[place].text())
print(f"{'word':8} {'teacher':>8} {'student':>8}  reverse KL at this position (nats)")
for at in range(first, len(ids)):
    kl = float((np.exp(q[at - 1]) * (q[at - 1] - p[at - 1])).sum())
    word = repr(tokenizer.decode([ids[at]]))
    print(f"{word:8} {np.exp(p[at - 1, ids[at]]):8.1%} {np.exp(q[at - 1, ids[at]]):8.1%}  {kl:6.3f} {'#' * int(40 * min(kl, 1.5) / 1.5)}")

# %% [markdown]
# > **Key observation.** The loss is not spread evenly: it stands at the few words where the work is done, and nearly
# > vanishes where both are only copying. That is why a few hundred rollouts can matter.
#
# ## Other ways, one seed each
#
# Recorded (`minimoe lab run distillation-ways`), to be read against `alone` and `forward-kl` of seed 0: other losses, only
# the 32 best words, a dense student of the sparse teacher, a student whose experts are in FP4 from the first step, and one
# that gets *nothing but text written by the teacher*, problems and prose.

# %%
def runs_of(experiment):
    """The runs of a record, or none with the command that makes them: these experiments are long."""
    try:
        return read_record(experiment)["runs"]
    except minimoe.UserError as missing:
        print(missing)
        return {}


ways = {name: read_record("distillation")["runs"][f"{name}-0"] for name in ("alone", "forward-kl")} | runs_of("distillation-ways")
for name, one in ways.items():
    after = one["quantized"] and f"; rounded to FP4 {one['quantized']['bits_per_byte']:.4f}"
    print(f"{name:17} {text_bits(one):.4f} bits per byte, {solved(one, name):.1%} of problems{after or ''}")

# %% [markdown]
# ### What can be copied from text alone?
#
# The press's accusation is that a model was trained on what another one *said*. `text-sampled` is that, at our scale: 32
# tokens of real text, and the teacher writes on; problems, and the teacher solves them. No logits, no weights.

# %%
if "text-sampled" in ways:
    black, white, own = ways["text-sampled"], ways["forward-kl"], ways["alone"]
    for what, measure in {"bits per byte": text_bits, "problems solved": lambda one: solved(one, "")}.items():
        print(f"{what}: real text {measure(own):.4f}, real text and logits {measure(white):.4f}, the teacher's text {measure(black):.4f}")

# %% [markdown]
# > **Key observation.** Behaviour that is written down can be copied from text: the form of an answer, the habit of steps.
# > What the teacher knows about everything it did *not* say is not in its text, and the student's own text suffers for
# > being a sample of a model instead of people. Whether somebody did this to somebody else's model cannot be tested here.
#
# ## Several teachers, one student
#
# DeepSeek-V4's last stage: specialists first, each trained on from the same base, then one student learns from all of
# them, each judging its own domain. Recorded (`minimoe lab run specialists`): `nano` goes on for a few steps on stories,
# on Bibles, on code and mathematics, on problems; then one student from the same base with the four as teachers, against
# the same steps without them.

# %%
family = runs_of("specialists")
if family:
    base = read_record("distillation")["runs"]["alone-0"]
    groups = {"stories": ("shakespeare", "austen"), "bibles": ("bible_en", "bible_es"), "exact": ("python", "math")}
    table = {name: family[name]["full"]["per_domain"] for name in groups} | {"base": base["full"]["per_domain"]}
    for name in ("several", "onward"):
        table[name] = {d: np.mean([family[f"{name}-{s}"]["full"]["per_domain"][d] for s in (0, 1, 2)]) for d in base["full"]["per_domain"]}
    relative = {name: {d: float(table[name][d] / table["base"][d] - 1) for d in table[name]} for name in table if name != "base"}
    for name, row in relative.items():
        print(f"{name:8}", ", ".join(f"{domain} {change:+.1%}" for domain, change in row.items()))
    for name in ("several", "onward"):
        values = [solved(family[f"{name}-{s}"], name) for s in (0, 1, 2)]
        print(f"{name}: problems {np.mean(values):.1%} ({min(values):.1%} to {max(values):.1%}), base {solved(base, 'base'):.1%}")
    figure = plots.by_domain(relative, "Figure 10: recorded, against the base they all began from")
else:
    figure = None
figure

# %% [markdown]
# ## What distillation cannot do
#
# *A teacher cannot teach what it does not know.* A sentence of a language that is in none of the six domains, scored by
# both, and a student's agreement with its teacher where the teacher is wrong:

# %%
latin = (
    "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui ipsorum lingua "
    "Celtae, nostra Galli appellantur. Hi omnes lingua, institutis, legibus inter se differunt."
)  # Caesar, De bello Gallico, book 1
latin_ids = [tokenizer.eot_id, *tokenizer.encode(latin)]
for name, model in {"teacher": expert, "its student": pupil, "nano": novice}.items():
    row = log_probs(model, latin_ids)
    nats = -sum(row[at, latin_ids[at + 1]] for at in range(len(latin_ids) - 1))
    print(f"Latin, {name:12} {nats / np.log(2) / len(latin.encode()):.2f} bits per byte")

# %%
many = [problem(index, level=level, split="val") for level in (2, 3) for index in range(8 if FAST else 60)]
starts = [[tokenizer.eot_id, *tokenizer.encode(one.prompt())] for one in many]
texts = {
    name: [tokenizer.decode(t) for t in continue_prompts(model, starts, 64, stop_token=tokenizer.eot_id, temperature=0)]
    for name, model in {"teacher": expert, "student": pupil}.items()
}
given = {name: [minimoe.data.parse_answer(one.prompt() + t) for one, t in zip(many, rows)] for name, rows in texts.items()}
wrong = [i for i, one in enumerate(many) if given["teacher"][i] != one.answer]
same = sum(given["student"][i] == given["teacher"][i] for i in wrong)
print(f"{len(many)} problems; the teacher is wrong on {len(wrong)}; on {same} of those the student gives the same wrong answer")

# %% [markdown]
# - **It moves knowledge, it makes none.** The student's ceiling is the teacher, mistakes included.
# - **A small student stays small.** The gap that is left is partly capacity, and no loss function buys that.
# - **Somebody paid for the teacher.** At equal *total* computation, teacher included, a single student may not be worth a
#   teacher. It pays when there is one already, or when there will be many students.
#
# ## What to distrust
#
# - **Synthetic problems.** Ours have one form and small numbers. "Reasoning" in a headline means more.
# - **Equal tokens favour the taught student**, because the teacher's forward pass is free in that count. Look at the line
#   for equal time.
# - **Three seeds** are a range and no distribution; single-seed rows are one draw.
# - **The same six domains.** A student may keep what the validation text asks for and lose what it does not.
# - **One teacher, one student size, 1.2 million tokens.** A student that trains longer needs its teacher less.
#
# ## Exercises
#
# Three functions to write, each in place of its `raise`. `check` says what is wrong in the idea, not only that a number
# differs; `hint("distillation.kd")` says more, three times. The same checks grade a file: `minimoe exercises --help`.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["distillation.kd"]

# %%
def kd(student, teacher, labels, mask, temperature, alpha):
    raise NotImplementedError("not written yet: distillation.kd")


check("distillation.kd", kd);

# %%
exercises()["distillation.on_policy"]

# %%
def on_policy_kl(student, teacher, tokens, prompt_lengths, written_lengths):
    raise NotImplementedError("not written yet: distillation.on_policy")


check("distillation.on_policy", on_policy_kl);

# %%
exercises()["distillation.topk"]

# %%
def topk_kl(student, values, ids, tail):
    raise NotImplementedError("not written yet: distillation.topk")


check("distillation.topk", topk_kl);

# %% [markdown]
# And without a check: make a student of your own with `minimoe distill --teacher teacher --student nano --tasks 0.5 --out
# runs/mine` and beat the share of the gap in Figure 9 at equal tokens. What did you change, and what would have to hold on
# three seeds before you believe it?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
