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
# kind of knowledge and asks what passes from teacher to student, and at what price.
#
# | | |
# | --- | --- |
# | **You should know** | notebook 00; what cross-entropy is; logarithms of probabilities |
# | **You will be able to** | write a distillation loss and say what T², the direction of the KL and the mask do; distil from live logits, from a cache, from sampled text and on the student's own text; read a claim such as "compresses reasoning" and say what it must be compared with |
# | **Time** | about five minutes on two CPU cores, about two minutes with `MINIMOE_FAST=1` (then the students trained here have learnt nothing) |

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
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
STEPS = 8 if FAST else 120
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores; two students of {STEPS} steps;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## The question
#
# "Distillation from larger teachers compresses reasoning into an efficient package": compresses *what*, measured how,
# and against which student? One that had the same text, the same number of tokens, the same minutes?
#
# The *gap*, below, is the way from a student that learnt alone (0%) to the teacher (100%), in bits per byte of text or in
# problems solved.
#
# **Predict before you run.** Your guesses come back beside the numbers.

# %%
my_guesses = {
    "share of the teacher's probability in its 32 best words": 0.80,
    "share of the gap in bits per byte that a teacher closes at equal tokens": 0.30,
    "share of problems that the teacher solves with steps": 0.60,
    "and without": 0.40,
    "share of problems solved by a student that read answers only": 0.10,
    "by one that read the steps its teacher wrote": 0.30,
}
guessed = list(my_guesses.values())

# %% [markdown]
# ## By hand: three words
#
# After "the cat sat on the", a text has *mat*. A teacher says mat 0.7, rug 0.25, moon 0.05; a student 0.5, 0.25, 0.25.
# On paper: the cross-entropy of the student with the text; then with the teacher; then subtract the teacher's own
# entropy. What is left is the divergence $\mathrm{KL}(p\,\|\,q)$. The slope at a logit is, for either target, the student's
# probability minus the target's.

# %%
three_p = np.array([0.7, 0.25, 0.05])  # teacher
three_q = np.array([0.5, 0.25, 0.25])  # student

hard = -np.log(three_q[0])
soft = -(three_p * np.log(three_q)).sum()
entropy = -(three_p * np.log(three_p)).sum()
print(f"cross-entropy with the text {hard:.4f}, with the teacher {soft:.4f}; entropy of the teacher {entropy:.4f} nats")
print(f"KL(teacher || student) = {soft - entropy:.4f}")
print("slope for the student's logits, text:   ", (three_q - np.array([1.0, 0.0, 0.0])).round(2))
print("slope for the student's logits, teacher:", (three_q - three_p).round(2))

# %% [markdown]
# > **Key observation.** A step goes against the slope. The text pushes *rug* and *moon* down alike; the teacher leaves *rug*
# > where it is and pushes *moon*. One position of a text carries one word. One position of a teacher carries a
# > probability for every word: which mistakes would have been small ones. That is what such a *soft target* adds to the
# > *hard* one.
#
# ## The formula
#
# With teacher logits $z^p$, student logits $z^q$, the text's word $y$ and a temperature $T$ that divides both logits,
#
# $$L=(1-\alpha)\,\mathrm{CE}(y,q)+\alpha\,T^2\,\mathrm{KL}\!\left(p^T\,\|\,q^T\right),\qquad p^T=\mathrm{softmax}(z^p/T),\quad q^T=\mathrm{softmax}(z^q/T)$$
#
# (Hinton, Vinyals and Dean, arXiv 1503.02531, section 2). Every loss of `minimoe.distill` gives one number a position,
# and `masked_mean` takes the mean over real positions only. The same three words through the library:

# %%
from minimoe import distill

zp, zq = (jnp.log(jnp.asarray(three, jnp.float32)) for three in (three_p, three_q))
print(f"forward_kl {distill.forward_kl(zq, zp):.4f}, by hand {soft - entropy:.4f}")
print(f"hinton_kd with alpha=0 {distill.hinton_kd(zq, zp, jnp.array(0), alpha=0.0):.4f}, by hand {hard:.4f}")

real = jnp.array([True, True, False])  # three positions, the last is padding
losses = distill.forward_kl(jnp.stack([zq, zp, zq]), jnp.stack([zp, zp, zp]), where=real)
print(f"three positions, the last padding: {losses.round(4)}, mean of the real ones {distill.masked_mean(losses, real):.4f}, "
      f"mean of all {losses.mean():.4f}")

# %% [markdown]
# ## The teacher
#
# It comes with the package: `small`, which has gone on with text and generated reasoning problems, half and half. Its
# card tells how it was made and what it scores. It is stored in int8; to ask it for logits by the thousand we decode it.
# ("Word" in this lesson means token: one of 2,048 pieces of text.)

# %%
from minimoe import hub, load_pretrained, quant
from minimoe.data import documents, evaluation_documents, windows

stored, tokenizer, config = load_pretrained("teacher")
expert = quant.dequantize_model(stored)
novice = quant.dequantize_model(load_pretrained("nano")[0])
print(hub.card("teacher").split("While it was trained")[0])

# %% [markdown]
# One position of text that neither model was trained on. What comes next? The ten words that the teacher likes best, and
# what `nano` thinks of the same ten, trained on 6.1 million tokens of text without a teacher.

# %%
validation = documents(split="val")
quick = evaluation_documents(validation, "quick")
by_domain = {domain: [d for d in quick if d.domain == domain] for domain in dict.fromkeys(d.domain for d in quick)}
part = [document for group in by_domain.values() for document in group[: 1 if FAST else 3]]
austen = next(document for document in quick if document.domain == "austen")
page = [tokenizer.eot_id, *tokenizer.encode(austen.text)][:96]


@flax.nnx.jit
def next_logits(model, tokens):
    return model(tokens)[0]


def log_probs(model, ids):
    return np.asarray(jax.nn.log_softmax(next_logits(model, jnp.asarray(ids)[None])[0]), np.float64)

# %%
said = {"teacher": log_probs(expert, page), "nano": log_probs(novice, page)}
entropies = -(np.exp(said["teacher"]) * said["teacher"]).sum(axis=1)
opens = [tokenizer.decode([token]).startswith(" ") for token in page]  # a space before it: a word begins here
spots = [i for i in range(40, 94) if opens[i + 1] and opens[i + 2]]  # where the next token is a whole word
spot = min(spots, key=lambda i: abs(entropies[i] - 2.0))  # and the teacher wavers between a few
best = np.argsort(-said["teacher"][spot])[:10]
words = [tokenizer.decode([int(token)]) for token in best]
true = page[spot + 1]
print(repr(tokenizer.decode(page[spot - 24 : spot + 1])), "->", repr(tokenizer.decode([true])))
plots.next_words(
    words, {name: np.exp(row[spot, best]) for name, row in said.items()},
    truth=list(best).index(true) if true in best else None, title="Figure 1: what comes next?",
)

# %% [markdown]
# Look below the first words: for the text they are all equally wrong. For the teacher they are a ranking of what fits the
# grammar and the scene. A temperature above 1 turns that ranking up:

# %%
def softmax_at(T):
    """Of the teacher's logits here; log-probabilities will do as logits."""
    raised = np.exp(said["teacher"][spot] / T)
    return raised / raised.sum()


four = {T: softmax_at(T)[best] for T in (0.5, 1.0, 2.0, 4.0)}
plots.temperatures(words, four, "Figure 2: the same logits at four temperatures")

# %% [markdown]
# ### Why T²
#
# The slope of the KL at temperature T is $(q^T-p^T)/T$: one factor 1/T. At high T the difference itself shrinks as 1/T
# too: the second factor. Measured, on all positions of that text:

# %%
from minimoe.distill import forward_kl

z = {name: jnp.asarray(row[:95], jnp.float32) for name, row in said.items()}


def slope(T):
    gradient = jax.grad(lambda q: forward_kl(q, z["teacher"], temperature=T).mean())(z["nano"])
    return float(jnp.abs(gradient).sum())


sizes = {T: slope(T) for T in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)}
for T, size in sizes.items():
    print(f"T={T:4.0f}: size of the slope {size:.5f}, times T {T * size:.5f}, times T^2 {T * T * size:.5f}")

# %% [markdown]
# > **Key observation.** Without T² the teacher falls silent as the temperature rises, and beside the labels' unchanged
# > slope whoever raises T also lowers alpha without knowing it. Times T² it tends to a constant, once T is beyond the
# > spread of the logits. (Alone, under Adam, a constant factor would hardly matter.) Exercise 1 wants the T².
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
    return density / density.sum() / 0.02  # the step of x


two = 0.65 * bell(-1.8, 0.7) + 0.35 * bell(2.2, 0.6)

# %%
def fit(loss, start, steps=400):
    """Mean and log-width that minimise a divergence from two humps."""
    def objective(v):
        return loss(jnp.log(bell(v[0], jnp.exp(v[1])) + 1e-10), jnp.log(two + 1e-10))  # as logits: softmax scales them

    optimizer = optax.adam(0.05)
    def step(carry, _):
        v, state = carry
        updates, state = optimizer.update(jax.grad(objective)(v), state)
        return (optax.apply_updates(v, updates), state), None

    start = jnp.array(start)
    (v, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return bell(v[0], jnp.exp(v[1])), float(v[0]), float(jnp.exp(v[1]))

# %%
divergences = {"forward KL": distill.forward_kl, "reverse KL": distill.reverse_kl,
               "Jensen-Shannon": lambda q, p: distill.generalized_jsd(q, p, 0.5)}  # fmt: skip
fits = {name: fit(loss, [-0.5, 0.0]) for name, loss in divergences.items()}
fits["reverse KL, from the right"] = fit(distill.reverse_kl, [2.0, 0.0])
for name, (_, mean, width) in fits.items():
    print(f"{name:15} mean {mean:+.2f}, width {width:.2f}")
plots.two_modes(np.asarray(x), np.asarray(two), {name: np.asarray(curve) for name, (curve, *_) in fits.items()},
                "Figure 3: one hump for two")  # fmt: skip

# %% [markdown]
# > **Key observation.** Forward KL *covers*: it puts mass between the humps, where the teacher has little. Reverse KL
# > *chooses*: it sits on one and ignores the other; on which one depends on where it began. The Jensen-Shannon divergence,
# > the mean of both KLs to the mixture $(p+q)/2$, is meant as a compromise; here it all but coincides with forward KL. For
# > text: forward KL makes a student that may say strange things, reverse KL one that says fewer things.
#
# ### The same on a language model
#
# From `nano`, a few steps towards the teacher with each, on the same batches. Then on held-out text: both divergences, the
# entropy of what the student says, and how much of its probability goes to words to which the teacher gives less than one
# in ten thousand.

# %%
from minimoe.data import training_data
from minimoe.training import Recipe, RunConfig, evaluate

text = training_data(documents(), tokenizer)
few = 6 if FAST else 40
recipe = Recipe(steps=few, batch_size=8, learning_rate=3e-4, warmup_steps=4, checkpoint_every=0, eval_every=0)
run = RunConfig(novice.config, recipe, {"name": "minimoe-corpus"}, tokenizer.name)
held_out = windows(part, tokenizer, config.context_length)
every = max(1, len(held_out.tokens) // 24)
tokens, where = jnp.asarray(held_out.tokens[::every]), jnp.asarray(held_out.where[::every])

# %%
@flax.nnx.jit
def character(student, teacher):
    q, p = student(tokens)[0], teacher(tokens)[0]  # they read everything; `where` is what is scored
    log_q, log_p = jax.nn.log_softmax(q), jax.nn.log_softmax(p)
    prob = jnp.exp(log_q)
    values = {
        "KL(p||q)": distill.forward_kl(q, p, where=where),
        "KL(q||p)": distill.reverse_kl(q, p, where=where),
        "entropy": -(prob * log_q).sum(axis=-1),
        "on words the teacher excludes": jnp.where(log_p < jnp.log(1e-4), prob, 0.0).sum(axis=-1),
    }
    return {name: distill.masked_mean(value, where) for name, value in values.items()}

# %%
def towards(divergence):
    way = distill.DistillRecipe(divergence=divergence, alpha=1.0)
    return distill.distill(run, way, expert, text, [], tokenizer, model=novice).model


characters = {"nano, untaught": character(novice, expert)}
characters |= {name: character(towards(name), expert) for name in ("forward_kl", "reverse_kl")}
for name, row in characters.items():
    print(f"{name:15}", ", ".join(f"{what} {float(value):.3f}" for what, value in row.items()))
forward, reverse = characters["forward_kl"], characters["reverse_kl"]
for what in ("KL(p||q)", "KL(q||p)"):
    print(f"by {what} the better student is the one of the {'forward' if forward[what] < reverse[what] else 'reverse'} KL")

# %% [markdown]
# > **Key observation.** In these few steps forward KL has hardly moved `nano`. Reverse KL has: the student is surer of itself
# > (its entropy is lower), says less of what the teacher would hardly ever say, and is *further* from the teacher by
# > KL(p||q). That is the direction of Figure 3. It is one run of each, and a short one.
#
# ## A teacher on disk
#
# A teacher that is asked for every batch of every student is paid for every time. Ask it once and keep its k best words:
# 2 bytes for the word, 2 for its log-probability, and one number for the mass of all others, the *tail*.

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
    from_disk = distill.distill(few_steps, way, cache, text, [], tokenizer)  # the teacher itself is not needed any more
print(f"{from_disk.step} steps of a student, taught from disk: loss {from_disk.records[-1]['loss']:.3f}")
batch = text.batch(0, 0, 8, config.context_length)
positions = batch.tokens.size * few_steps.recipe.steps
print(f"{positions:,} positions, {on_disk:,} bytes in files: {on_disk / positions:.1f} a token")
q, p = (next_logits(model, jnp.asarray(batch.tokens)) for model in (novice, expert))
exact = float(distill.forward_kl(q, p).mean())
stored_words = [jnp.asarray(np.asarray(array)) for array in (some.values, some.ids, some.tail)]
kept = float(distill.topk_kl(q, *stored_words).mean())
forgot = float(distill.topk_kl(q, *stored_words, renormalize=True).mean())
print(f"KL from all logits {exact:.4f}; from 32 words and the tail {kept:.4f}, {kept / exact:.1%} of it; "
      f"from 32 words as if there were no others {forgot:.4f}")

# %% [markdown]
# > **Key observation.** With a tail, 32 words give most of the divergence in a sixtieth of the bytes. To act as if the 32
# > were everything is another loss: it never tells the student how *little* the other words deserve. (Exercise 2.)
# > DeepSeek-V4 keeps the teacher's last hidden state instead and computes all logits from it again (section 5.2.2 of the
# > report): exact, larger than a few words, and far smaller than 129,280 logits.
#
# ## Alone and taught
#
# Two fresh students of the shape of `nano`, the same seed, the same batches of text: one with cross-entropy, one with nine
# tenths of its loss from the teacher.

# %%
from minimoe.config import ModelConfig
nano = ModelConfig.preset("nano")
students_recipe = Recipe.preset("nano", steps=STEPS, eval_every=0 if FAST else STEPS // 3, checkpoint_every=0)
students_run = RunConfig(nano, students_recipe, {"name": "minimoe-corpus"}, tokenizer.name)
ways_here = {"alone": distill.DistillRecipe(alpha=0.0), "taught": distill.DistillRecipe(alpha=0.9)}
live, seconds = {}, {}
for name, way in ways_here.items():
    live[name] = distill.distill(students_run, way, expert, text, part, tokenizer)
    speeds = [r["tokens_per_second"] for r in live[name].records if r["kind"] == "train"]
    seconds[name] = STEPS * 8 * config.context_length / np.median(speeds)  # without compiling and scoring
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
# The rest is **recorded**: `minimoe experiments run distillation` (`minimoe/records/distillation.json`). Students of the shape of
# `nano`, 1.2 million tokens each, half text and half generated reasoning problems (more of these below), scored on all
# validation text: `alone` with cross-entropy, `forward-kl` on the same batches with the teacher's logits, and
# `alone-equal-time`, which has no teacher and as much time as the one that has.

# %%
from minimoe.experiments import read_record, training_speed
from minimoe.plots.toward_teacher import share_closed


def by_way(runs):
    """Runs of one way together, seeds in order."""
    found = {}
    for name, one in runs.items():
        found.setdefault(name.rpartition("-")[0], []).append(one)
    return found


def text_bits(one):
    return one["full"]["bits_per_byte"]

# %%
recorded = by_way(read_record("distillation")["runs"])
master = read_record("teacher")["runs"]["teacher"]
alone = np.mean([text_bits(one) for one in recorded["alone"]])
rows = []
for name, runs in recorded.items():
    values = [text_bits(one) for one in runs]
    spent = float(np.mean([one["tokens"] / training_speed(one) for one in runs]))
    rows.append({"name": name, "mean": float(np.mean(values)), "low": min(values), "high": max(values), "seconds": spent})
    closed = share_closed(rows[-1]["mean"], alone, text_bits(master))
    print(f"{name:17} {len(values)} seeds, {np.mean(values):.4f} bits per byte ({min(values):.4f} to {max(values):.4f}), "
          f"{runs[0]['tokens'] / 1e6:.2f}M tokens: {closed:.0%} of the gap")
longer = text_bits(read_record("nano")["runs"]["nano"])
print(f"teacher {text_bits(master):.4f}; and without any teacher, 6.1M tokens of text, the shipped nano: {longer:.4f}, "
      f"{share_closed(longer, alone, text_bits(master)):.0%} of the gap")
plots.gap_closed(rows, alone, text_bits(master), title="Figure 5: recorded, text, whole validation text")

# %% [markdown]
# Seeds decide initial weights and the order of text, so runs of one seed are a pair. The differences within pairs:

# %%
def against(name, other, measure):
    """A way's gain over another, seed by seed, in words."""
    gains = [measure(a) - measure(b) for a, b in zip(recorded[name], recorded[other])]
    return f"{name} minus {other}: {np.mean(gains):+.4f} (" + ", ".join(f"{gain:+.4f}" for gain in gains) + ")"


for name in [name for name in recorded if name != "alone"]:
    print(against(name, "alone", text_bits), "bits per byte")
print(against("forward-kl", "alone-equal-time", text_bits), "bits per byte")
taught = np.mean([text_bits(one) for one in recorded["forward-kl"]])
spread = max(np.ptp([text_bits(one) for one in recorded[name]]) for name in ("alone", "forward-kl"))
verdict = "outside" if alone - taught > spread else "NOT outside"
print(f"forward KL is {verdict} the range between seeds ({spread:.4f}) and closes "
      f"{share_closed(taught, alone, text_bits(master)):.0%} of the gap; you guessed {guessed[1]:.0%}")

# %%
wanted = {"alone": "student alone", "forward-kl": "forward KL"}
curves = {
    label: [[(r["tokens"], r["bits_per_byte"]) for r in one["curve"] if r["kind"] == "eval"] for one in recorded[name]]
    for name, label in wanted.items()
}
plots.gap_over_tokens(curves, master["quick"]["bits_per_byte"], "Figure 6: recorded, three seeds, quick protocol")

# %% [markdown]
# > **Key observation.** At equal tokens the teacher helps on every seed, by more than the seeds differ, and the curves stay
# > apart. At equal *time* it does not: its forward pass nearly doubles a step of this student, and even somewhat less
# > time, spent on more text, buys more. (Look at the times in Figure 5: they drift with the machine.) Answers on disk
# > change that bill from the second student on: then a taught step costs what any step costs. Whoever reports a
# > distillation gain should say which of the three it is. And do not read the share as "how much of the teacher fits
# > into the student": the same shape closes most of the gap with nothing but more text.
#
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
print("share of the gap to the teacher that forward KL closes:")
for domain, best_possible in master["full"]["per_domain"].items():
    pair = [np.mean([one["full"]["per_domain"][domain] for one in recorded[name]]) for name in ("forward-kl", "alone")]
    print(f"  {domain:12} {share_closed(*pair, best_possible):.0%}")
plots.by_domain(changes, "Figure 7: recorded, change of bits per byte by domain")

# %% [markdown]
# > **Key observation.** Every domain gains; mathematics gains least, in percent and of its own gap. Why, we have not tested.
#
# ## A reasoning task
#
# Bits per byte cannot tell whether anything was *worked out*. So: generated problems with an answer that can be checked. A
# problem of level n takes n steps, and the later ones need earlier results. One in ten combinations of operands is kept from
# training, and every validation problem needs one of those.

# %%
from minimoe.data import check_answer, problem

for level, family in ((2, "arithmetic"), (3, "words"), (4, "lists")):
    print(problem(3, level=level, split="val", family=family).text())

# %% [markdown]
# The teacher has read such problems in both forms, with the steps and without, as many of each. The same validation
# problems, asked both ways; greedy answers:

# %%
from minimoe.inference import continue_prompts


def as_text(tokens):
    return tokenizer.decode([token for token in tokens if token != tokenizer.eot_id])


asked = [problem(index, level=level, split="val") for level in (1, 3) for index in range(2 if FAST else 4)]
written = {}
for form in ("worked", "direct"):
    prompts = [[tokenizer.eot_id, *tokenizer.encode(one.prompt(form))] for one in asked]
    written[form] = continue_prompts(expert, prompts, 96, stop_token=tokenizer.eot_id, temperature=0)
for place, one in enumerate(asked):
    print(one.question, "->", one.answer)
    for form, answers in written.items():
        whole = one.prompt(form) + as_text(answers[place])
        verdict = "right" if check_answer(one, whole) else "wrong"
        print(f"   {form:7}{as_text(answers[place]).strip()!r}: {verdict}")

# %% [markdown]
# Recorded: exact match by level, 100 validation problems of each, float32 (the card above: 50, and the int8 weights). The
# students of Figure 5 are graded as well.

# %%
def exact(one, form="worked"):
    return one["tasks"][form]["exact_match"]


def solved(one, form="worked"):
    return one["tasks"][form]["mean_exact_match"]


shares = {
    f"teacher, {form}": {int(level): [share] for level, share in exact(master, form).items()} for form in ("worked", "direct")
}
for name in ("alone", "forward-kl"):
    shares[f"student, {name}"] = {int(level): [exact(one)[level] for one in recorded[name]] for level in exact(master)}
for name, row in shares.items():
    print(f"{name:20}", ", ".join(f"level {level} {np.mean(values):.0%}" for level, values in row.items()))
print(f"teacher, all levels: with steps {solved(master):.0%}, you guessed {guessed[2]:.0%}; "
      f"without {solved(master, 'direct'):.0%}, you guessed {guessed[3]:.0%}")
plots.exact_match_by_level(shares, "Figure 8: recorded, problems solved by level")

# %%
for name in ("alone", "forward-kl"):
    held = [np.mean(list(one["tasks"]["worked"]["step_validity"].values())) for one in recorded[name]]
    print(f"student, {name}: {np.mean(held):.0%} of the steps that it writes hold")
print(f"teacher: {np.mean(list(master['tasks']['worked']['step_validity'].values())):.0%}")

# %% [markdown]
# > **Key observation.** Two results. The *same weights* solve several times as many problems when they may write the steps
# > down: the steps are where the reasoning is. And at this budget **neither student reasons**, taught or not. Logits made
# > the taught one a better writer; they did not make it calculate. Exact match counts nothing until every step of a chain
# > holds; the share of single steps that hold shows where the students are on the way.
#
# ## Students that reason
#
# Those students read 0.6 million tokens of problems: too few to begin. Once more, **recorded** (`minimoe experiments run
# reasoning`), three seeds: the trained `nano` goes on for 3.3 million tokens, nine tenths of them from 18,432 problems.
#
# - `direct`: question and answer, no steps: what a data set without a teacher often has. `direct-equal-time` (one seed)
#   goes on for as long as `sampled-right` and its teacher's writing took together
# - `sampled`: the steps that the *teacher* wrote, right or wrong. Only text passes, no logits
# - `sampled-right`: those of them that led to the right answer. Whoever cannot write the steps can still check an answer;
#   DeepSeek-R1's small models were made like this
# - `worked`: the true steps of all problems, from the generator. Outside of synthetic problems nobody has these
# - `worked-right`: the true steps of just those problems that the teacher solves
# - `forward-kl`: as `worked`, with the teacher's logits at each word

# %%
reasoners = by_way(read_record("reasoning")["runs"])
ways = {name: "worked" for name in ("sampled", "sampled-right", "worked", "worked-right", "forward-kl")}
ways = {"direct": "direct", "direct-equal-time": "direct"} | ways
top, found = solved(master), {}
shares = {"teacher": {int(level): [share] for level, share in exact(master).items()}}
for name, form in ways.items():  # each is asked in the form that it learnt
    shares[name] = {int(level): [exact(one, form)[level] for one in reasoners[name]] for level in exact(master)}
    found[name] = [solved(one, form) for one in reasoners[name]]
for name, row in shares.items():
    print(f"{name:13}", ", ".join(f"level {level} {np.mean(values):.0%}" for level, values in row.items()))
plots.exact_match_by_level(shares, "Figure 9: recorded, problems solved by level")

# %%
means = {name: float(np.mean(values)) for name, values in found.items()}
rows = []
print(f"before: text {text_bits(read_record('nano')['runs']['nano']):.3f} bits per byte")
for name, values in found.items():
    trained = np.mean([one["tokens"] / training_speed(one) for one in reasoners[name]])
    spent = float(trained) + reasoners[name][0].get("sampled_seconds", 0.0)  # the teacher's writing, once for all students
    rows.append({"name": name, "mean": means[name], "low": min(values), "high": max(values), "seconds": spent})
    print(f"{name:13} solves {means[name]:.1%} ({', '.join(f'{value:.1%}' for value in values)}); "
          f"text: {np.mean([text_bits(one) for one in reasoners[name]]):.3f} bits per byte")
for start, compared in {"direct": list(ways)[1:], "worked": ["sampled-right", "worked-right", "forward-kl"]}.items():
    closed = {name: share_closed(means[name], means[start], top) for name in compared}
    print(f"of the gap from {start} to the teacher:", ", ".join(f"{name} {value:.0%}" for name, value in closed.items()))
print(f"answers only {means['direct']:.0%}, you guessed {guessed[4]:.0%}; the teacher's steps {means['sampled-right']:.0%}, "
      f"you guessed {guessed[5]:.0%}")
plots.gap_closed(rows, means["direct"], top, "problems solved", "Figure 10: recorded, reasoning, all levels", percent=True,
                 start="answers only")  # fmt: skip

# %%
wrote = reasoners["worked-right"][0]
minutes = wrote["sampled_seconds"] / 60
print(f"the teacher solved {wrote['sampled_right']:.0%} of the pool, in {minutes:.0f} minutes on one core (more than above: "
      f"these combinations it may have seen); {wrote['sampled_same']:.0%} of these solutions have just the true steps")

# %% [markdown]
# > **Key observation.** With answers only the student solves one problem in twenty, and with three times the training, the
# > minutes of the teacher's writing included, still less than one in ten. With written steps it comes most of the way to
# > a model five times its size, outside of anything that seeds do, and **no logit was needed**: this much can be copied
# > from text alone. That is what companies have been accused of, training on another model's answers. (Whether somebody
# > did cannot be tested here.)
# >
# > Two things carry it. The *steps*, whosever they are: `worked` has no teacher and does as well, and nearly all of the
# > teacher's right solutions are word for word those of the generator. The teacher is a *channel* for steps that a student
# > without a generator would not have. And the *check*: unchecked, with a third of them wrong, the same solutions teach
# > about half as much.
# >
# > Beware of reading more into the rows: runs of one way differ by many points between seeds. On seed 0 `sampled-right` is
# > well ahead of `worked`; we had an explanation (the teacher's limits choose the easier problems, a syllabus) and ran
# > `worked-right` to test it. Seed 1 turned the order round, as it did for `sampled`. One seed is an anecdote, even with a
# > good story to it.
# >
# > What logits visibly do is something else: the student forgets less of its English while it learns to calculate. A tenth
# > of the tokens is text, and there the teacher speaks too. A step takes twice the time. The way of text has its bill
# > elsewhere: the teacher writes first, once for all students.
#
# ### Its own mistakes
#
# A student that only ever reads right solutions has never seen what to do after a slip. On-policy training (arXiv
# 2306.13649; DeepSeek-V4, section 5.1.2) lets the student write and asks the teacher about every word of it:
#
# $$L_{\text{OPD}}=\sum_i w_i\;\mathrm{KL}\!\left(q_\theta\,\|\,p_{E_i}\right),\qquad\text{text sampled from } q_\theta$$
#
# with the sum over several teachers. At each position it is the reverse KL over the whole vocabulary: no reward, and no
# noise from the one word that was drawn there. (The text before it is drawn; no gradient goes through that.) Here is what
# the `student` of the package writes (`forward-kl` of Figure 9, seed 0), and how far it is from its teacher at each word:

# %%
from minimoe.data import parse_answer

pupil = quant.dequantize_model(load_pretrained("student")[0])
many = [problem(index, level=level, split="val") for level in (2, 3) for index in range(8 if FAST else 60)]
starts = [[tokenizer.eot_id, *tokenizer.encode(one.prompt())] for one in many]
tokens_of, texts = {}, {}
for name, model in {"teacher": expert, "student": pupil}.items():
    tokens_of[name] = continue_prompts(model, starts, 96, stop_token=tokenizer.eot_id, temperature=0)
    texts[name] = [one.prompt() + as_text(tokens) for one, tokens in zip(many, tokens_of[name])]
right = {name: [check_answer(one, text) for one, text in zip(many, row)] for name, row in texts.items()}
print(f"{len(many)} problems of levels 2 and 3:", ", ".join(f"{name} {np.mean(row):.0%} right" for name, row in right.items()))

# %%
place = right["student"].index(False)
rollout, first = [*starts[place], *tokens_of["student"][place]], len(starts[place])
log_p, log_q = log_probs(expert, rollout), log_probs(pupil, rollout)
kls = (np.exp(log_q) * (log_q - log_p)).sum(axis=1)
print(many[place].text())
print(f"{'word':8} {'teacher':>8} {'student':>8}  reverse KL at this position (nats)")
for at in range(first, len(rollout)):
    token, before = rollout[at], at - 1  # the position before a word predicts it
    print(f"{tokenizer.decode([token])!r:8} {np.exp(log_p[before, token]):8.1%} {np.exp(log_q[before, token]):8.1%}  "
          f"{kls[before]:6.3f} {'#' * int(40 * min(kls[before], 1.5) / 1.5)}")
own_words = np.sort(kls[first - 1 : len(rollout) - 1])[::-1]
print(f"{len(own_words)} words, and {own_words[:5].sum() / own_words.sum():.0%} of the loss at five of them")

# %% [markdown]
# > **Key observation.** The loss is not spread evenly. At most words teacher and student agree; it stands at the few where
# > something is worked out, or copied wrongly. And every one of these positions is a place where *this* student really gets
# > to.
#
# Recorded, three seeds: each student of `sampled-right` goes on for 150 steps. `onward`: on the same data, no teacher.
# `offline`: the same data, nine tenths of the loss from the teacher's logits. `on-policy`: reverse KL on what the student
# writes below the same problems, and nothing else: no right answers, no English.

# %%
earlier = found["sampled-right"]
phases = {"before": reasoners["sampled-right"]} | {name: reasoners[name] for name in ("onward", "offline", "on-policy")}
for name, runs in phases.items():
    values = [solved(one) for one in runs]
    gains = "" if name == "before" else f" ({', '.join(f'{value - old:+.1%}' for value, old in zip(values, earlier))})"
    levels = " ".join(f"{np.mean([exact(one)[level] for one in runs]):.0%}" for level in exact(master))
    held = np.mean([list(one["tasks"]["worked"]["step_validity"].values()) for one in runs])
    spent = "" if name == "before" else f"; {np.mean([one['train_seconds'] for one in runs]):.0f} s"
    print(f"{name:9} {np.mean(values):.1%}{gains}; by level {levels}; {held:.0%} of the steps hold; "
          f"text {np.mean([text_bits(one) for one in runs]):.2f}{spent}")

# %% [markdown]
# > **Key observation.** On every seed `on-policy` ends above `offline`, and `onward`, without a teacher, above both. Why?
# > Four things differ at once: whose text it is, the direction of the KL, the labels, the English. This record cannot say
# > which of them counts. (We had a story: the filter knew the answers, and the teacher's logits bring its doubts back. But
# > `offline` loses at level 1 only, and its single steps hold as often as before.) What `offline` gets for it is English.
# > Papers report gains from on-policy steps for teachers that are much better than their student; this one is not.
# >
# > **A trap of Mixture-of-Experts models.** A mask can mean "this does not count" or "this is not there". Here the prompt does
# > not count in the loss, and our first version gave that mask to the model as well, for which it means padding: no experts
# > for any token of the prompt, in student and teacher alike. The loss looked fine, the tests used a dense student, and the
# > students forgot a third of what they could do.
#
# ## Other ways
#
# Back to the students of Figure 5, 1.2 million tokens each. Recorded as well (`minimoe experiments run distillation-ways`), three
# seeds or one (seed 0, to be read against the first number of `alone` and of `forward-kl`): other losses (`jsd` is
# Jensen-Shannon, `hinton-2` has T = 2 and T²); only the 32 best words; a student whose experts are rounded to FP4 in every
# step of training (`quantized`); a dense student of the sparse teacher, against `dense-alone`; and students of *text that
# the teacher wrote*, without its logits and with them.

# %%
others = {name: recorded[name] for name in ("alone", "forward-kl")} | by_way(read_record("distillation-ways")["runs"])
rows = []
for name, runs in others.items():
    values = [text_bits(one) for one in runs]
    rows.append({"name": name, "mean": float(np.mean(values)), "low": min(values), "high": max(values)})
    rounded = [one["quantized"]["bits_per_byte"] - text_bits(one) for one in runs if one["quantized"]]
    print(f"{name:19} {np.mean(values):.4f} bits per byte ({', '.join(f'{value:.4f}' for value in values)})"
          + (f"; experts in FP4 {np.mean(rounded):+.5f}" if rounded else ""))
plots.gap_closed(rows, alone, text_bits(master), title="Figure 11: recorded, other ways, whole validation text")

# %%
dense = [text_bits(b) - text_bits(a) for a, b in zip(others["dense-alone"], others["dense-forward-kl"])]
sparse = [text_bits(b) - text_bits(a) for a, b in zip(others["alone"], others["forward-kl"])]
for name, gains in {"dense": dense, "sparse": sparse}.items():
    print(f"what the sparse teacher does for a {name} student: {np.mean(gains):+.3f} bits per byte "
          f"({', '.join(f'{gain:+.3f}' for gain in gains)})")

# %% [markdown]
# > **Key observation.** Plain forward KL is the best of the losses here, T = 2 and Jensen-Shannon do next to nothing, and
# > reverse KL makes a *worse* writer than no teacher at all. Bits per byte are a cross-entropy with the text, which punishes
# > whoever says few things; reverse KL is usually given to students that can already write. Of this teacher, unsure as it
# > is, the 32 best words bring about half of what all logits bring. What the student is made of matters little: a dense one gains from the sparse
# > teacher about what a sparse one does, and experts in FP4 cost next to nothing, rounded in training or after it.
#
# ### What can be copied from text alone?
#
# The press's accusation is that a model was trained on what another one *said*. Solutions of problems can be copied like that,
# as you saw. `text-sampled` asks the same of prose: 32 tokens of real text, and the teacher writes the other seven eighths;
# its problems are solved by the teacher too. No logits, no weights. `text-sampled-logits` reads the same text and has the
# logits, and nothing but them (alpha is 1).

# %%
four = {"real text": "alone", "real text and logits": "forward-kl", "the teacher's text": "text-sampled",
        "the teacher's text and logits": "text-sampled-logits"}  # fmt: skip
for label, name in four.items():
    bits = np.mean([text_bits(one) for one in others[name]])
    print(f"{label:30} {bits:.4f} bits per byte, {share_closed(bits, alone, text_bits(master)):.0%} of the gap")

# %% [markdown]
# > **Key observation.** The teacher's text teaches about what real text does, hardly more: who has no text can make some by
# > asking, who has gains little by it. What is more than text needs logits. And those say more on the teacher's own text
# > than on real text: the best row of Figure 11. Why, this cannot say. Its text is easier; it has read the real training
# > text seven times and is too sure of it; and alpha differs.
#
# ## Several teachers, one student
#
# DeepSeek-V4's last stage (report, section 5.1.2): first specialists, each by supervised training and then reinforcement
# learning; then one student learns from all of them, on text that the *student* writes, each teacher judging its own tasks
# (their weights $w_i$ are not published). Ours, recorded (`minimoe experiments run specialists`): the trained `nano` goes on for 300
# steps on stories, on Bibles, on code and mathematics; for problems, `worked` of Figure 9 is the specialist. Then one
# student, three seeds, from the same `nano`: `several` has the four as teachers, each for its own domains ($w_i$ is 1 or
# 0), and a quarter of its 600 steps on its own answers. `no teachers` takes the same steps without them.

# %%
family = read_record("specialists")["runs"]
base = read_record("nano")["runs"]["nano"]["full"]["per_domain"]
own = {"stories": ("shakespeare", "austen"), "bibles": ("bible_en", "bible_es"), "exact": ("python", "math")}
heirs = by_way(family)


def change(runs):
    """Of the bits per byte in each domain, against the nano that all began from."""
    return {d: float(np.mean([one["full"]["per_domain"][d] for one in runs])) / bits - 1 for d, bits in base.items()}


shown = {"its specialist": {}, "several": change(heirs["several"]), "no teachers": change(heirs["onward"])}
for name, domains in own.items():
    row = change([family[name]])
    shown["its specialist"] |= {domain: row[domain] for domain in domains}
    rest = [shift for domain, shift in row.items() if domain not in domains]
    print(f"{name:8} in its own domains {np.mean([row[d] for d in domains]):+.1%}, in all others {np.mean(rest):+.1%}")
shown["its specialist"] = {domain: shown["its specialist"][domain] for domain in base}
title = "Figure 12: recorded, each domain's specialist, and one student for all"
plots.by_domain(shown, title, against="the nano all began from")

# %% [markdown]
# Problems are half of what those students read, 0.6 million tokens: too few to begin, as above. Two controls, then.
# `no teachers, longer` (one seed) takes as many steps as specialists and student together. And, three seeds, the same two
# ways for 400 steps `from reasoning`: from the best `worked` student, which can solve problems and has forgotten much of
# its English. Can the others give that back, while the one it was itself judges its problems?

# %%
table = {"several": "several", "no teachers": "onward", "no teachers, longer": "onward-longer",
         "several, from reasoning": "several-from-reasoning", "no teachers, from reasoning": "onward-from-reasoning"}  # fmt: skip
table = {"worked, the specialist": reasoners["worked"][:1], "worked, the best": reasoners["worked"][1:2]} | {
    label: heirs[name] for label, name in table.items()
}
for label, runs in table.items():
    bits, values = [text_bits(one) for one in runs], [solved(one) for one in runs]
    held = np.mean([list(one["tasks"]["worked"]["step_validity"].values()) for one in runs])
    spent = np.mean([one["train_seconds"] for one in runs])
    print(f"{label:27} text {np.mean(bits):.3f} ({min(bits):.3f} to {max(bits):.3f}); problems {np.mean(values):.1%} "
          f"({min(values):.1%} to {max(values):.1%}), {held:.0%} of the steps hold; {spent:.0f} s")

# %% [markdown]
# > **Key observation.** Specialists know their own domains a little better and have forgotten much of all others. Four of them
# > make a better student than none, on every seed. Yet both students end behind the `nano` they began from, since half of
# > what they read is problems. And the control beats everything: as many steps as specialists and student took together,
# > spent on *one* model without any teacher, give the best text and begin to reason. From reasoning, the teachers give
# > back more English than text alone does, and the student loses a fifth of its problems, though it was to listen to
# > itself there; without teachers it keeps nearly all. So at our scale several teachers are a way to *join* models that exist
# > already, at a loss, and no way to get more for the same work. DeepSeek's specialists were made by reinforcement
# > learning, which no further steps on the text replace; that case is not tested here.
#
# ## What distillation cannot do
#
# *Does it pass mistakes on?* Problems that the teacher gets wrong: how often does the student above give the same wrong
# answer? Answers shuffled between problems say what chance would give. This cannot tell a mistake that was passed on from
# one that lies near; for that one would ask a student of the same problems that had no teacher.

# %%
given = {name: [parse_answer(text) for text in row] for name, row in texts.items()}
wrong = [i for i in range(len(many)) if not right["teacher"][i] and given["teacher"][i] is not None]
same = sum(given["student"][i] == given["teacher"][i] for i in wrong)
chance = np.mean([given["student"][i] == given["teacher"][j] for i in wrong for j in wrong if i != j])
print(f"the teacher gives a wrong answer to {len(wrong)} of {len(many)} problems; the student gives the same to {same} "
      f"of these ({same / len(wrong):.0%}); answers shuffled between problems agree {chance:.0%} of the time")

# %% [markdown]
# ## What to distrust
#
# - **It moves knowledge, it makes none.** What neither the teacher nor the text knows, nobody learns here. And somebody paid
#   for the teacher: it is worth it when there is one already, or when there will be many students.
# - **Equal tokens favour the taught student**, because the teacher's forward pass is free in that count. Look at the line
#   for equal time.
# - **Three seeds** are a range and no distribution. **500 problems** give each mean a standard error of about two
#   points, so four either way; the seeds of the reasoning students differ by more.
# - **The teacher read this text seven times.** On training text it is surer than it should be, and so are its logits.
# - **One teacher, one student size, nothing tuned.** Learning rates, shares and alpha were chosen once; another way could
#   win with its own.
# - **Synthetic problems.** Ours have one form and small numbers. "Reasoning" in a headline means more.
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
exercises()["distillation.topk"]

# %%
def topk_kl(student, values, ids, tail):
    raise NotImplementedError("not written yet: distillation.topk")


check("distillation.topk", topk_kl);

# %%
exercises()["distillation.on_policy"]

# %%
def on_policy_kl(student, teacher, tokens, prompt_lengths, written_lengths):
    raise NotImplementedError("not written yet: distillation.on_policy")


check("distillation.on_policy", on_policy_kl);

# %% [markdown]
# And without a check: make a student of your own with `minimoe distill --teacher teacher --student nano --tasks 0.5
# --steps 600 --out runs/mine` and beat the share of the gap in Figure 5 at equal tokens. What did you change, and what
# would have to hold on three seeds before you believe it? (The specialists come with the package too: `--teacher small
# --teacher austen=stories --teacher reasoning=teacher`.)

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
