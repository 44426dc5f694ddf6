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
# A text tells a model which word came. A teacher tells it how likely *every* word was. This lesson trains students on
# what a teacher says. It asks what passes from teacher to student, and at what price.
#
# | | |
# | --- | --- |
# | **You should know** | lesson 00; what cross-entropy is; logarithms of probabilities |
# | **You will be able to** | write a distillation loss; say what T², the direction of the KL and the mask do; tell apart learning from logits, from a teacher's text and from one's own text; say what a claim such as "compresses reasoning" must be compared with |
# | **Time to study** | 45 minutes for the core, with exercise 1; about 75 more for *Further*, with exercises 2 and 3 |
# | **Time to run** | about two minutes on two CPU cores; about one minute with `MINIMOE_FAST=1`, where the live part learns almost nothing |
#
# "Word" means token in this lesson: one of 2,048 pieces of text. "Recorded" means that the numbers come from a longer
# experiment, which you can repeat with `minimoe experiments run NAME`. A difference "on all three seeds" is a difference between runs with the same seed:
# the same initial weights and the same order of the data.

# %%
import os
import platform
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from IPython.display import Markdown

import minimoe
from minimoe import distill, hub, load_pretrained, plots, quant
from minimoe.process import keep_compiled_programs, keep_memory

FAST = os.environ.get("MINIMOE_FAST") == "1"
began = time.monotonic()
keep_memory()  # freed memory stays with this process: a step need not ask for it again
keep_compiled_programs()  # a second run of this notebook need not compile again
print(f"minimoe {minimoe.__version__}, jax {jax.__version__}, flax {flax.__version__}, Python {platform.python_version()}")
print(f"{os.cpu_count()} cores;", "fast profile" if FAST else "full profile")

# %% [markdown]
# ## 1. The loss, by hand
#
# After "the cat sat on the", a text has *mat*. A teacher gives mat 0.7, rug 0.25 and moon 0.05. A student gives 0.5, 0.25
# and 0.25. Three numbers, on paper first:
#
# - the cross-entropy of the student with the text, which is the *hard* target;
# - the cross-entropy of the student with the teacher, which is the *soft* target;
# - the second less the teacher's own entropy. This is the divergence $\mathrm{KL}(p\,\|\,q)$ of the student $q$ from the
#   teacher $p$. It is 0 when the two agree.

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
# A training step goes against the slope. The text pushes *rug* and *moon* down by the same amount. The teacher leaves *rug*
# where it is and pushes only *moon*. So the teacher also says which mistakes are small ones.
#
# Now the same for models. A *temperature* $T$ divides the logits of both before the softmax:
#
# $$\mathrm{KL}\!\left(p^T\,\|\,q^T\right)=\sum_v p^T_v\,(\log p^T_v-\log q^T_v),\qquad p^T=\mathrm{softmax}(z^p/T),\quad q^T=\mathrm{softmax}(z^q/T)$$

# %%
def log_softmax(logits):
    """[..., V] -> [..., V]; the largest logit is subtracted first, so that exp cannot overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))


def soft_loss(student_logits, teacher_logits, T=1.0):
    """KL(teacher || student) at every position, in nats: [..., V] and [..., V] -> [...]."""
    log_q = log_softmax(student_logits / T)
    log_p = log_softmax(jax.lax.stop_gradient(teacher_logits) / T)  # nobody trains the teacher
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def real_mean(losses, real):
    """The mean over real positions; padding must not count, not even in the number that we divide by."""
    return jnp.where(real, losses, 0.0).sum() / jnp.maximum(real.sum(), 1)

# %% [markdown]
# Two checks against the library: the number on paper, and random logits with a mask.

# %%
zp, zq = (jnp.log(jnp.asarray(three, jnp.float32)) for three in (three_p, three_q))
assert np.isclose(soft_loss(zq, zp), soft - entropy, atol=1e-6)

some_q, some_p = 3 * jax.random.normal(jax.random.key(0), (2, 4, 5, 100))  # [B=4, L=5, V=100] each
real = jnp.arange(5) < jnp.array([5, 3, 1, 0])[:, None]  # the rows have 5, 3, 1 and 0 real positions
ours = real_mean(soft_loss(some_q, some_p, 2.0), real)
np.testing.assert_allclose(ours, distill.masked_mean(distill.forward_kl(some_q, some_p, temperature=2.0), real), rtol=1e-5)
print(f"soft_loss equals distill.forward_kl: {ours:.4f} over the {int(real.sum())} real positions")

# %% [markdown]
# ### Put to work
#
# The teacher comes with the package. It is the model `small` of lesson 00, trained further on text and on generated
# problems. The student begins as `nano`, which has read no problems. The loop below is the whole of distillation: both
# models read the same tokens, and the student's loss is its distance from the teacher.

# %%
from minimoe.data import task_documents, training_data

stored, tokenizer, config = load_pretrained("teacher")
teacher = quant.dequantize_model(stored)  # stored in int8
novice = quant.dequantize_model(load_pretrained("nano")[0])
pupil = nnx.clone(novice)
optimizer = nnx.Optimizer(pupil, optax.adam(1e-3), wrt=nnx.Param)
problems = training_data(list(task_documents(2_000, seed=7)), tokenizer)


@nnx.jit
def distil_step(student, teacher, optimizer, tokens):
    graph, params, rest = nnx.split(student, nnx.Param, ...)
    said = teacher(tokens)[0]

    def loss(params):
        return soft_loss(nnx.merge(graph, params, rest)(tokens)[0], said).mean()

    value, slopes = jax.value_and_grad(loss)(params)
    optimizer.update(student, slopes)
    return value

# %%
distances = []
for step in range(4 if FAST else 40):
    batch = problems.batch(step, 0, 8, 128)  # (step, seed, rows, length): new problems in every step
    distances.append(float(distil_step(pupil, teacher, optimizer, jnp.asarray(batch.tokens))))
for step in sorted({0, 3, 9, 19, len(distances) - 1}):
    if step < len(distances):
        print(f"step {step + 1:3}: {distances[step]:.3f} nats from the teacher")

# %% [markdown]
# The distance falls: the loop works. Whether a teacher is *better than text* is another question. For that a student without
# a teacher must read the same tokens. Section 3 has such students.
#
# ## 2. What a teacher says: dark knowledge
#
# Below is one position of a text that neither model was trained on. The figure has the ten words that the teacher likes
# best, and what `nano` thinks of the same ten.

# %%
from minimoe.data import documents, evaluation_documents

quick = evaluation_documents(documents(split="val"), "quick")
austen = next(document for document in quick if document.domain == "austen")
page = [tokenizer.eot_id, *tokenizer.encode(austen.text)][:96]


@nnx.jit
def next_logits(model, tokens):
    return model(tokens)[0]


def log_probs(model, ids):
    return np.asarray(jax.nn.log_softmax(next_logits(model, jnp.asarray(ids)[None])[0]), np.float64)

# %%
said = {"teacher": log_probs(teacher, page), "nano": log_probs(novice, page)}
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
# *What to see:* the text names one word; the teacher ranks all others as well, and those that fit the grammar come first.
#
# Hinton called this ranking of wrong answers *dark knowledge*. The model's best answer alone does not show it. A temperature
# above 1 shows it more clearly:

# %%
def softmax_at(T):
    """Of the teacher's logits at that position; log-probabilities will do as logits."""
    raised = np.exp(said["teacher"][spot] / T)
    return raised / raised.sum()


plots.temperatures(words, {T: softmax_at(T)[best] for T in (0.5, 1.0, 2.0, 4.0)}, "Figure 2: the same logits at four temperatures")

# %% [markdown]
# *What to see:* as T rises, the ten bars become alike, and more probability goes to words outside the list.
#
# ### Why T²
#
# Hinton's loss (arXiv 1503.02531, section 2) mixes the text's word $y$ and the teacher, with a share $\alpha$ for the teacher:
#
# $$L=(1-\alpha)\,\mathrm{CE}(y,q)+\alpha\,T^2\,\mathrm{KL}\!\left(p^T\,\|\,q^T\right)$$
#
# The slope of the KL is $(q^T-p^T)/T$. That is one factor 1/T. At high T the difference $q^T-p^T$ itself shrinks as 1/T. That
# is the second factor. Measured on the text above:

# %%
z = {name: jnp.asarray(row[:95], jnp.float32) for name, row in said.items()}


def slope(T):
    gradient = jax.grad(lambda q: soft_loss(q, z["teacher"], T).mean())(z["nano"])
    return float(jnp.abs(gradient).sum())


for T in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0):
    print(f"T={T:4.0f}: size of the slope {slope(T):.5f}, times T {T * slope(T):.5f}, times T^2 {T * T * slope(T):.5f}")

# %% [markdown]
# > **Key observation.** Without T² the slope of the teacher's part goes to zero as T rises, and the slope of the text's part
# > stays. Then a higher T has the effect of a smaller alpha. With T² the slope goes to a constant.
#
# ### Exercise 1
#
# Write Hinton's loss: both parts, T² and the mask. `check` says what is wrong in the idea. `hint("distillation.kd")`
# gives up to three hints.

# %%
from minimoe.exercises import check, exercises, hint

exercises()["distillation.kd"]

# %%
def kd(student, teacher, labels, mask, temperature, alpha):
    raise NotImplementedError("not written yet: distillation.kd")


check("distillation.kd", kd);

# %% [markdown]
# ## 3. Does a teacher help on text?
#
# The rest of the core is recorded. Here are its runs: what each begins with, what it reads, and what its loss is. All students have the shape of `nano`. A generated problem has one of two *forms*: its steps and its
# answer are written out, or its answer alone.

# %%
from minimoe.experiments import read_record, training_speed
from minimoe.plots.toward_teacher import share_closed

KL, CE = "0.9 KL + 0.1 CE", "CE"
RUNS = {  # name: (group, record, name there, begins as, reads, loss)
    "alone": ("A", "distillation", "alone", "random", "text and problems, half each", CE),
    "taught": ("A", "distillation", "forward-kl", "random", "the same", KL),
    "alone, equal time": ("A", "distillation", "alone-equal-time", "random", "the same, and more of it", CE),
    "answers": ("B", "reasoning", "direct", "nano", "9/10 problems: answers alone", CE),
    "teacher's steps": ("B", "reasoning", "sampled", "nano", "9/10 problems: steps by the teacher", CE),
    "checked steps": ("B", "reasoning", "sampled-right", "nano", "the same, where the answer is right", CE),
    "true steps": ("B", "reasoning", "worked", "nano", "9/10 problems: steps of the generator", CE),
    "true steps, logits": ("B", "reasoning", "forward-kl", "nano", "the same", KL),
    "teacher's text": ("D", "distillation-ways", "text-sampled", "random", "text and steps by the teacher", CE),
}

# %%
def of(name):
    """The runs of one name, seeds in order."""
    _, record, key, *_ = RUNS[name]
    return [one for full, one in read_record(record)["runs"].items() if full.rpartition("-")[0] == key]


def table(groups):
    """The runs of these groups as a table."""
    lines = ["| group | run | begins as | reads | loss | tokens | seeds |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, (group, _, _, begins, reads, loss) in sorted(RUNS.items(), key=lambda run: run[1][0]):
        if group in groups:
            size = f"{of(name)[0]['tokens'] / 1e6:.1f}M | {len(of(name))}"
            lines.append(f"| {group} | **{name}** | {begins} | {reads} | {loss} | {size} |")
    return Markdown("\n".join(lines))


table("AB")

# %% [markdown]
# CE is the cross-entropy with the text that is read. KL is the distance from the teacher.
#
# The cells print differences between runs of one seed, three of them. As everywhere in this course, an effect is *shown* when the
# mean of the three is larger than the distance from the smallest to the largest. Otherwise it is *open*.
#
# First group A. The *gap* is the way from the student alone (0%) to the teacher (100%), in bits per byte of validation
# text. **Predict:** how much of the gap does the teacher close at equal tokens? Does it help at equal *time*, too? Write a
# share and `True` or `False`.

# %%
my_share, my_equal_time = None, None

# %%
def text_bits(one):
    return one["full"]["bits_per_byte"]


def seconds(one):
    return one["tokens"] / training_speed(one)  # without compiling and scoring


def is_shown(gains):
    """The rule of this course: the mean is larger than the distance from the smallest to the largest difference."""
    return abs(np.mean(gains)) > np.ptp(gains)


def pairs(name, other, measure, unit=1.0):
    """A run less another of the same seed, in words; also whether the difference is shown."""
    gains = [unit * (measure(a) - measure(b)) for a, b in zip(of(name), of(other), strict=True)]
    each = ", ".join(f"{gain:+.3f}" if unit == 1 else f"{gain:+.1f}" for gain in gains)
    return f"{name} less {other}: {each} ({'shown' if is_shown(gains) else 'open'})"

# %%
master = read_record("teacher")["runs"]["teacher"]
bits = {name: [text_bits(one) for one in of(name)] for name in RUNS}
start, goal = np.mean(bits["alone"]), text_bits(master)
closed = share_closed(np.mean(bits["taught"]), start, goal)
if my_share is None or my_equal_time is None:
    print("fill in your prediction above and run this cell again")
else:
    helps = np.mean(bits["taught"]) < np.mean(bits["alone, equal time"])
    print(f"you said {my_share:.0%} and {my_equal_time}; measured {closed:.0%} and {helps}")

# %%
def row_of(name, values, spent):
    return {"name": name, "mean": float(np.mean(values)), "low": min(values), "high": max(values), "seconds": spent}


group_a = [name for name in RUNS if RUNS[name][0] == "A"]
print(pairs("taught", "alone", text_bits), "bits per byte")
print(pairs("taught", "alone, equal time", text_bits), "bits per byte")
for name in group_a:
    print(f"{name}: {', '.join(f'{seconds(one):.0f}' for one in of(name))} s of training on two cores")
longer = text_bits(read_record("nano")["runs"]["nano"])
print(f"the shipped nano, no teacher, {read_record('nano')['runs']['nano']['tokens'] / 1e6:.1f}M tokens of text: {longer:.3f}, "
      f"{share_closed(longer, start, goal):.0%} of the gap")
plots.gap_closed(
    [row_of(name, bits[name], float(np.mean([seconds(one) for one in of(name)]))) for name in group_a],
    start, goal, title="Figure 3: recorded, text; dots are means of three seeds, bars their range",
)

# %% [markdown]
# *What to see:* the taught student is left of the student alone, and the student with equal time is left of both.
#
# > **Key observation.** At equal tokens the teacher helps, on all three seeds. At equal time it does not: on all three
# > seeds the student without a teacher, which reads more text in that time, is better.
#
# The teacher must read every token too, and the count of tokens does not contain that work. So ask of every such gain: is
# it at equal tokens, or at equal time, and does the time contain the teacher's work?
#
# The last printed line is a student of the same shape. It closed most of the gap with more text and no teacher. So the share
# of the gap does not say how much of a teacher *fits* into a student.
#
# ## 4. Does a teacher help to reason?
#
# Bits per byte cannot tell whether anything was worked out. So the students get generated problems with an answer that can be
# checked. A problem of level n takes n steps, and later steps need earlier results. One combination of operands in ten is
# kept from training, and every validation problem needs one of these.

# %%
from minimoe.data import check_answer, check_steps, problem

for level, family in ((2, "arithmetic"), (3, "words"), (4, "lists")):
    print(problem(3, level=level, split="val", family=family).text())

# %% [markdown]
# The teacher has read problems in both forms, with steps and with the answer alone, equally many of each. How many does it
# solve in each form? And the students of group A?

# %%
def exact(one, form="worked"):
    return {int(level): share for level, share in one["tasks"][form]["exact_match"].items()}


def solved(one, form="worked"):
    return one["tasks"][form]["mean_exact_match"]


shown = {f"teacher, {what}": {level: [share] for level, share in exact(master, form).items()}
         for form, what in (("worked", "with steps"), ("direct", "answer alone"))}  # fmt: skip
for name in ("taught", "alone"):
    shown[f"{name} (group A)"] = {level: [exact(one)[level] for one in of(name)] for level in exact(master)}
for name, row in shown.items():
    print(f"{name:21}", ", ".join(f"level {level} {np.mean(values):.0%}" for level, values in row.items()))
plots.exact_match_by_level(shown, "Figure 4: recorded, problems solved by level, 100 of each")

# %% [markdown]
# *What to see:* the teacher with steps is far above the other three lines. The teacher with the answer alone is the same
# model, with the same weights. The two students of group A solve almost nothing.
#
# > **Key observation.** The same weights solve several times as many problems when they write the steps. This holds at
# > level 1 too, where there is only one step and nothing to take apart.
#
# So "it breaks the problem into parts" cannot be the whole reason. The logits made the taught student better on text. They
# did not make it solve problems. A guess at the reason: 0.6 million tokens of problems are too few.
#
# ### Students that reason
#
# Group B has read more: 3.3 million tokens, nine tenths of them problems. What differs is who wrote the steps.
#
# - **answers**: no steps at all, as in most data sets without a teacher.
# - **teacher's steps**: the teacher solves each problem in writing, and the student reads that, right or wrong. Training on a
#   teacher's whole texts is *sequence-level* knowledge distillation (Kim and Rush, arXiv 1606.07947). No logits pass.
# - **checked steps**: only those solutions that end in the right answer. Keeping the samples that pass a check is *rejection
#   sampling*. DeepSeek-R1's small models were made from samples that were filtered like that.
# - **true steps**: from the generator. Outside of synthetic problems nobody has these.
# - **true steps, logits**: the same, and nine tenths of the loss from the teacher's logits.
#
# **Predict:** what share of the problems does each of two students solve, "answers" and "checked steps"?

# %%
my_answers, my_checked = None, None

# %%
group_b = [name for name in RUNS if RUNS[name][0] == "B"]
form_of = {name: "direct" if name == "answers" else "worked" for name in RUNS}  # each is asked in the form that it read
found = {name: [solved(one, form_of[name]) for one in of(name)] for name in group_b}
if my_answers is None or my_checked is None:
    print("fill in your prediction above and run this cell again")
else:
    print(f"you said {my_answers:.0%} and {my_checked:.0%}; "
          f"measured {np.mean(found['answers']):.0%} and {np.mean(found['checked steps']):.0%}")

# %%
rows = []
for name in group_b:
    writing = of(name)[0].get("sampled_seconds", 0.0)  # the teacher's writing, once for all students
    rows.append(row_of(name, found[name], float(np.mean([seconds(one) for one in of(name)])) + writing))
    print(f"{name:18} solves {', '.join(f'{value:.1%}' for value in found[name])}; text {np.mean(bits[name]):.3f} bits per byte")


def points(name, other):
    """Paired differences of problems solved, in points (hundredths)."""
    gains = [100 * (a - b) for a, b in zip(found[name], found[other], strict=True)]
    each = ", ".join(f"{gain:+.1f}" for gain in gains)
    word = "shown" if is_shown(gains) else "open"
    return f"{name} less {other}: {each} points; mean {np.mean(gains):+.1f}, spread {np.ptp(gains):.1f}: {word}"


for name, other in (("checked steps", "answers"), ("teacher's steps", "answers"), ("checked steps", "teacher's steps"),
                    ("checked steps", "true steps"), ("true steps, logits", "true steps")):  # fmt: skip
    print(points(name, other))
print(pairs("true steps, logits", "true steps", text_bits), "bits per byte")
plots.gap_closed(rows, np.mean(found["answers"]), solved(master), "problems solved", percent=True, start="answers",
                 title="Figure 5: recorded, reasoning; means of three seeds, bars their range")  # fmt: skip

# %% [markdown]
# *What to see:* every row with written steps is right of "answers"; the bars of those rows overlap one another. The minutes
# are those of training on two cores; where the teacher writes, its writing on one core is added.
#
# The *spread* is the distance from the smallest to the largest of the paired differences: "shown" means a larger mean than that.
#
# > **Key observation.** *The steps make the difference.* "Checked steps" against "answers" is a large gain on all three seeds, with
# > equal tokens, and no logits were needed.
# >
# > *The rest is open.* Unchecked steps against answers, checked against unchecked, checked against true, logits against none:
# > each of these changes more from seed to seed than it gains on the mean. Logits keep more of the text: that is shown.
#
# *Further* asks what the teacher's writing cost, and whether it is anything but true steps.
#
# ### On the screen
#
# The package has one of these students: `student` is "true steps, logits" of seed 0. Here is the first problem of each
# level, solved live by the teacher, by `student`, and by `nano`, which is the student before.

# %%
from minimoe.inference import continue_prompts

student = quant.dequantize_model(load_pretrained("student")[0])
many = [problem(index, level=level, split="val") for level in (1, 2, 3, 4) for index in range(4 if FAST else 40)]
starts = [[tokenizer.eot_id, *tokenizer.encode(one.prompt())] for one in many]
tokens_of, texts, right = {}, {}, {}
for name, model in {"teacher": teacher, "student": student, "nano": novice}.items():
    tokens_of[name] = continue_prompts(model, starts, 64, stop_token=tokenizer.eot_id, temperature=0)
    plain = [tokenizer.decode([token for token in row if token != tokenizer.eot_id]) for row in tokens_of[name]]
    texts[name] = [one.prompt() + text for one, text in zip(many, plain, strict=True)]
    right[name] = [check_answer(one, text) for one, text in zip(many, texts[name], strict=True)]
per_level = len(many) // 4
for place in [level * per_level for level in range(4)]:
    print(many[place].question, "->", many[place].answer)
    for name in ("teacher", "student", "nano"):
        answer = " ".join(texts[name][place][len(many[place].prompt()) :].split())[:60]
        print(f"   {name:8}{'right' if right[name][place] else 'wrong'}  {answer}")

# %%
for name, row in right.items():
    print(f"{name:8} solves {sum(row)} of {len(row)} ({np.mean(row):.0%})")
size = {name: sum(array.size for array in jax.tree.leaves(nnx.state(model, nnx.Param)))
        for name, model in (("teacher", teacher), ("student", student))}  # fmt: skip
print(f"parameters: teacher {size['teacher'] / 1e6:.2f} million, student {size['student'] / 1e6:.2f} million")

# %% [markdown]
# ## 5. Verdicts
#
# Two claims of the press. The boxes are written by the cells, from the numbers.

# %%
from minimoe.plots.verdict import verdict

text_gain = np.array(bits["alone"]) - np.array(bits["taught"])
time_gain = np.array(bits["alone, equal time"]) - np.array(bits["taught"])
step_gain = 100 * (np.array(found["checked steps"]) - np.array(found["answers"]))
verdict(
    claim="Distillation from larger teachers compresses reasoning into a small, efficient package.",
    means="A student with a teacher solves more problems than the same student with the same number of tokens and no teacher.",
    measured=f"A student that read its teacher's checked steps solves {np.mean(found['checked steps']):.0%} of the problems; one that "
    f"read answers alone, {np.mean(found['answers']):.0%} ({step_gain.min():+.0f} to {step_gain.max():+.0f} points, three seeds). The "
    f"teacher, {size['teacher'] / size['student']:.1f} times as large, solves {solved(master):.0%}. True steps without a teacher: "
    f"{np.mean(found['true steps']):.0%}. On text, logits gain {text_gain.mean():.3f} bits per byte at equal tokens and "
    f"{'lose' if time_gain.mean() < 0 else 'gain'} {abs(time_gain.mean()):.3f} at equal time.",
    says="holds when the teacher writes out its steps, and there is no other source of steps" if (step_gain > 0).all()
    else "does not show here",
    would_change="a student with answers alone, of any length of training, that comes near the student with steps",
)

# %%
by_text = share_closed(np.mean(found["checked steps"]), np.mean(found["answers"]), solved(master))
unchecked = share_closed(np.mean(found["teacher's steps"]), np.mean(found["answers"]), solved(master))
by_logits = share_closed(np.mean(found["true steps, logits"]), np.mean(found["answers"]), solved(master))
prose = share_closed(np.mean(bits["teacher's text"]), start, goal)
verdict(
    claim="A rival's model was made by distillation, from the answers of its interface alone.",
    means="Text is enough, without logits or weights. (Whether anybody did it cannot be tested here.)",
    measured=f"Reasoning: from text alone a student goes {by_text:.0%} of the way from answers to the teacher where somebody "
    f"checks the answers, {unchecked:.0%} where nobody does, and {by_logits:.0%} with true steps and logits. Prose: the teacher's text closes {prose:.0%} of the gap in bits per byte, and "
    f"logits on real text {closed:.0%}.",
    says="holds when the skill is written out in the text, as steps are, and right answers can be told from wrong ones"
    if (step_gain > 0).all() else "does not show here",
    would_change="a skill that the text shows and that a student does not learn from it",
)

# %% [markdown]
# What to distrust, before you repeat a box:
#
# - *Three seeds* show a range. They do not show a distribution. *500 problems* give each share a standard error of two points.
# - *One teacher, one size of student, nothing tuned.* Another way could win with its own learning rate.
# - *The teacher read this text seven times.* On training text it may be too sure, and then its logits are misleading.
# - *Synthetic problems* of one form, with small numbers. "Reasoning" in a headline means more.
#
# # Further
#
# Each of the sections below stands alone. They use more runs, groups C to E. ("Its text, logits" reads what "teacher's text"
# reads.)

# %%
RUNS |= {
    "goes on": ("C", "reasoning", "onward", "checked steps", "as checked steps", CE),
    "goes on, logits": ("C", "reasoning", "offline", "checked steps", "as checked steps", KL),
    "on-policy": ("C", "reasoning", "on-policy", "checked steps", "what it writes itself", "reverse KL"),
    "taught, reverse KL": ("D", "distillation-ways", "reverse-kl", "random", "as taught", "0.9 reverse KL + 0.1 CE"),
    "its text, logits": ("D", "distillation-ways", "text-sampled-logits", "random", "text and steps by the teacher", "KL"),
    "four teachers": ("E", "specialists", "several-from-reasoning", "the best of true steps", "text, problems, own answers", "KL"),
    "no teachers": ("E", "specialists", "onward-from-reasoning", "the best of true steps", "text and problems, half each", CE),
}
bits |= {name: [text_bits(one) for one in of(name)] for name in RUNS}
table("CDE")

# %% [markdown]
# ## What the teacher's writing is
#
# "Checked steps" needs a teacher that writes thousands of solutions. What did that cost, and what does it contain?

# %%
wrote = of("checked steps")[0]
print(f"the teacher's solutions: {wrote['sampled_right']:.0%} of the pool right (these operands it may have seen); "
      f"{wrote['sampled_same']:.0%} of the right ones have exactly the true steps; "
      f"{wrote['sampled_seconds'] / 60:.0f} minutes of writing on one core")
longer = read_record("reasoning")["runs"]["direct-equal-time-0"]
print(f"answers for as long as the checked steps and their writing together, seed 0: {solved(longer, 'direct'):.1%}, "
      f"against {found['answers'][0]:.1%} and {found['checked steps'][0]:.1%} of the same seed")

# %% [markdown]
# > **Key observation.** One run of "answers", with as much time as "checked steps" and the teacher's writing together, does not
# > catch up. And nearly all right solutions of the teacher *are* the true steps, word for word. So here the teacher is one
# > source of steps, and another source would do.
# >
# > *The use of the check is open.* Checked steps are better than unchecked ones by many points on two seeds, and a little worse
# > on the third. Three pairs like these decide nothing.

# %% [markdown]
# ## Compounding error
#
# A solution of n steps is right only if all n steps are. If single steps hold with probability h and slips are
# independent, $h^n$ of the solutions are right. Small errors multiply. Worse is possible: a student that has only read right
# solutions has never seen what comes after a slip, and may slip more easily there. Both together are called *compounding
# error*. Measured on the student's solutions on the screen:

# %%
def steps_of(one, text):
    """Whether the arithmetic of each written step holds."""
    written = next((line for line in text.split("\n") if line.startswith("Steps:")), "Steps:")[6:].split(";")
    return [check_steps(one, f"Steps: {step}").num_valid == 1 for step in written if step.strip()]


after = {True: [], False: []}  # does a step hold, under whether all steps before it in the solution hold
for one, text in zip(many, texts["student"], strict=True):
    held = steps_of(one, text)
    for place in range(1, len(held)):
        after[all(held[:place])].append(held[place])
for clean, each in after.items():
    print(f"steps after {'right steps only' if clean else 'a slip'}: {np.mean(each or [np.nan]):.0%} of {len(each)} hold")
print("recorded, checked steps, three seeds:")
for level in exact(master):
    hold = np.mean([one["tasks"]["worked"]["step_validity"][str(level)] for one in of("checked steps")])
    print(f"   level {level}: {hold:.0%} of the steps hold, to the power {level}: {hold**level:.0%}; "
          f"solved {np.mean([exact(one)[level] for one in of('checked steps')]):.0%}")

# %% [markdown]
# > **Key observation.** Small errors multiply. At levels 2 to 5 single steps hold about equally often, and at levels 4
# > and 5 far fewer whole solutions are right than at level 2.
#
# The share is below $h^n$ at every level, because a step may hold and be the wrong step, for example one step too
# many. The second part of compounding error does not show here: after a slip the next steps hold as often as after
# right steps. But after a slip the solution works with a wrong number, and right steps do not repair that.

# %% [markdown]
# ## Its own mistakes: on-policy distillation
#
# Right solutions do not show what to do after a slip. *On-policy* distillation (arXiv 2306.13649; DeepSeek-V4's report, section
# 5.1.2) lets the student write and asks the teacher about every word of that. The loss is the *reverse* KL, whose mean is
# taken under the student:
#
# $$\mathrm{KL}(q\,\|\,p)=\sum_v q_v\,(\log q_v-\log p_v),\qquad\text{on text that the student wrote}$$
#
# No gradient goes through the sampling of that text. Group C has three students of each seed. Each begins as "checked steps"
# and takes 150 steps more: "goes on" on the same data; "goes on, logits" on the same data, with nine tenths of the loss from
# the teacher; "on-policy" on its own answers, with the reverse KL and nothing else.

# %%
group_c = [name for name in RUNS if RUNS[name][0] == "C"]
found |= {name: [solved(one) for one in of(name)] for name in group_c}
for name in ["checked steps", *group_c]:
    held = np.mean([list(one["tasks"]["worked"]["step_validity"].values()) for one in of(name)])
    print(f"{name:16} solves {np.mean(found[name]):.1%}; {held:.0%} of the steps hold; text {np.mean(bits[name]):.2f} bits per byte"
          + ("" if name == "checked steps" else f"; {np.mean([one['train_seconds'] for one in of(name)]):.0f} s"))
for name in group_c:
    print(points(name, "checked steps"))
for name in ("on-policy", "goes on, logits"):
    print(points(name, "goes on"))

# %% [markdown]
# > **Key observation.** No gain from the teacher shows in these students. Its logits make them worse than "goes on", which has
# > no teacher: that is shown. "On-policy" is below "goes on" on all three seeds, and by too little on one of them: open.
#
# "On-policy" differs from "goes on" in four things at once: whose text it is, the loss, the labels, and the share of ordinary
# text. The record cannot say which of them counts.
#
# One reason can be looked at. The reverse KL corrects a slip only if the teacher disagrees with it. Take each wrong solution of
# the student on the screen above. Find the first word at which it leaves the true solution. What does the teacher say there?

# %%
slips = []
for one, begin, wrote, ok in zip(many, starts, tokens_of["student"], right["student"], strict=True):
    truth = tokenizer.encode(one.text())[len(begin) - 1 :]  # what the generator has below the prompt
    first = next((i for i, (a, b) in enumerate(zip(wrote, truth)) if a != b), None)
    if not ok and first is not None:
        slips.append((len(begin) + first, [*begin, *wrote], truth[first]))
longest = max(len(row) for _, row, _ in slips)
padded = jnp.asarray([row + [tokenizer.eot_id] * (longest - len(row)) for _, row, _ in slips])
by_teacher, by_student = (np.asarray(jax.nn.log_softmax(next_logits(model, padded)), np.float64) for model in (teacher, student))
kls = (np.exp(by_student) * (by_student - by_teacher)).sum(axis=-1)
at = [(row, place - 1, tokens[place], truth) for row, (place, tokens, truth) in enumerate(slips)]  # one place before: the prediction
agrees = np.mean([by_teacher[row, i, slip] > by_teacher[row, i, truth] for row, i, slip, truth in at])
print(f"{len(slips)} first slips. The teacher gives the slip {np.mean([np.exp(by_teacher[r, i, s]) for r, i, s, _ in at]):.0%} on "
      f"average and the true word {np.mean([np.exp(by_teacher[r, i, t]) for r, i, _, t in at]):.0%};")
print(f"at {agrees:.0%} of the slips it likes the slip better than the true word.")
for name, want in (("the teacher likes the slip better", True), ("the teacher likes the true word better", False)):
    chosen = [kls[r, i] for r, i, s, t in at if (by_teacher[r, i, s] > by_teacher[r, i, t]) == want]
    print(f"reverse KL where {name}: {np.mean(chosen or [np.nan]):.3f} nats (mean of {len(chosen)})")

# %% [markdown]
# > **Key observation.** The teacher is not much better than this student. At a good part of the first slips it prefers the
# > slip as well, and there the reverse KL is much smaller than at the other slips: it has less to correct. This fits the result
# > of group C. It does not prove the cause. The student on the screen learned from this teacher's logits, so that they agree is in
# > part its training; those of group C learned from text. And a test needs a teacher that knows better: with such ones, papers
# > report gains of on-policy training.
# >
# > **A trap of Mixture-of-Experts models.** A mask can mean "this does not count" or "this is not there". Here the prompt does
# > not count in the loss. Our first version gave that mask to the model as well. For the model it means padding, so no token
# > of the prompt got an teacher, in student and teacher alike. The loss looked fine.
#
# ### Exercise 2

# %%
exercises()["distillation.on_policy"]

# %%
def on_policy_kl(student, teacher, tokens, prompt_lengths, written_lengths):
    raise NotImplementedError("not written yet: distillation.on_policy")


check("distillation.on_policy", on_policy_kl);

# %% [markdown]
# ## Which way round?
#
# The forward KL takes its mean under the teacher: it punishes a student that leaves out what the teacher says. The reverse KL
# takes its mean under the student: it punishes a student that says what the teacher would not say. A student that can equal
# the teacher ends at $p=q$ under both. A smaller student cannot. Below, a single bell curve is fitted to two.

# %%
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
fits = {
    "forward KL": fit(soft_loss, [-0.5, 0.0]),
    "reverse KL": fit(distill.reverse_kl, [-0.5, 0.0]),
    "reverse KL, from the right": fit(distill.reverse_kl, [2.0, 0.0]),
}
for name, (_, mean, width) in fits.items():
    print(f"{name:27} mean {mean:+.2f}, width {width:.2f}")
plots.two_modes(np.asarray(x), np.asarray(two), {name: np.asarray(curve) for name, (curve, *_) in fits.items()},
                "Figure 6: one hump for two")  # fmt: skip

# %% [markdown]
# *What to see:* the forward KL covers both humps and the gap between them; the reverse KL covers one hump, and the starting
# point decides which one.
#
# On a language model the same choice has a price in bits per byte. These are students of groups A and D, on the validation text:

# %%
group_d = ["alone", "taught", "taught, reverse KL", "teacher's text", "its text, logits"]
for name in group_d[1:]:
    print(pairs(name, "alone", text_bits), "bits per byte")
print(pairs("its text, logits", "taught", text_bits), "bits per byte")
gain = {name: start - np.mean(bits[name]) for name in ("taught", "teacher's text")}
gain_share = gain["teacher's text"] / gain["taught"]
print(f"the teacher's text gains {gain_share:.0%} of what logits on real text gain")
plots.gap_closed([row_of(name, bits[name], None) for name in group_d], start, goal,
                 title="Figure 7: recorded, text by other ways; means of three seeds, bars their range")  # fmt: skip

# %% [markdown]
# *What to see:* only the student of the reverse KL is right of the student alone, and only logits take a student far left.
#
# > **Key observation.** *Reverse KL* from the start gives a student that is worse on text than without a teacher, on all three seeds. Bits per byte
# > punish a model that leaves possible words out. (That this is the reason here is a guess.) The reverse KL is usually given
# > to students that can write already.
# >
# > *Text alone.* In "teacher's text" the teacher wrote seven eighths of every text, after 32 tokens of real text, and solved the
# > problems. Its student gains a little over "alone" on all three seeds: a small part of what logits gain on real text. Steps can be
# > learnt from text alone. Most of the gain in bits per byte needs logits.
# >
# > *Logits on the teacher's own text* gain over "alone": that is shown. They are the best row of the figure, and their lead over
# > "taught" is open. Three things differ there: the text is easier, the teacher has not read it before, and that loss has no labels.

# %% [markdown]
# ## A teacher on disk
#
# A teacher that answers for every batch of every student costs time for every batch. Instead, ask it once. Store its k best
# words and the probability of all other words together, which is the *tail*. **Predict:** what share of its probability is
# in its 32 best words of 2,048, on average?

# %%
my_best_32 = None

# %%
ranked = -np.sort(-np.exp(said["teacher"][:95]), axis=1)
share_32 = ranked[:, :32].sum(axis=1).mean()
print("fill in your prediction above and run this cell again" if my_best_32 is None
      else f"you said {my_best_32:.0%}, measured {share_32:.0%}")  # fmt: skip

# %%
import tempfile
from pathlib import Path

from minimoe.training import Recipe, RunConfig

for k in (1, 4, 16, 32, 64, 256):
    held = ranked[:, :k].sum(axis=1)
    print(f"k={k:3}: {held.mean():.1%} of the probability on average, {held.min():.1%} at the worst position; "
          f"{4 * k + 2} bytes a token, all logits in float32 {4 * config.vocab_size:,}")
text = training_data(documents(), tokenizer)
few_steps = RunConfig(novice.config, Recipe(steps=2 if FAST else 4, batch_size=8), {}, tokenizer.name)
way = distill.DistillRecipe(top_k=32, alpha=1.0)
with tempfile.TemporaryDirectory() as folder:
    cache = distill.cache_teacher(Path(folder) / "cache", few_steps, way, teacher, text, tokenizer)
    on_disk = sum(path.stat().st_size for path in (Path(folder) / "cache").iterdir())
    some = cache.batch(0)
    from_disk = distill.distill(few_steps, way, cache, text, [], tokenizer)  # the teacher itself is not needed any more
print(f"{from_disk.step} steps of a student, taught from disk: loss {from_disk.records[-1]['loss']:.3f}")
batch = text.batch(0, 0, 8, config.context_length)
print(f"{on_disk / (batch.tokens.size * few_steps.recipe.steps):.1f} bytes a token in files")

# %%
q, p = (next_logits(model, jnp.asarray(batch.tokens)) for model in (novice, teacher))
exact_kl = float(distill.forward_kl(q, p).mean())
stored_words = [jnp.asarray(np.asarray(array)) for array in (some.values, some.ids, some.tail)]
kept = float(distill.topk_kl(q, *stored_words).mean())
forgot = float(distill.topk_kl(q, *stored_words, renormalize=True).mean())
print(f"KL from all logits {exact_kl:.4f}; from 32 words and the tail {kept:.4f}, {kept / exact_kl:.0%} of it; "
      f"from 32 words as if there were no others {forgot:.4f}")

# %% [markdown]
# > **Key observation.** With a tail, 32 words give most of the divergence in a sixtieth of the bytes. Without the tail
# > it is another loss: it does not say how *little* probability the other words should get.
#
# DeepSeek-V4 keeps the teacher's last hidden state instead and computes all logits from it again (report, section
# 5.2.2). That is exact.
#
# ### Exercise 3

# %%
exercises()["distillation.topk"]

# %%
def topk_kl(student, values, ids, tail):
    raise NotImplementedError("not written yet: distillation.topk")


check("distillation.topk", topk_kl);

# %% [markdown]
# ## Can facts be distilled?
#
# Steps follow a rule, and a student can learn the rule from many steps. A random fact follows no rule. This teacher learned a
# book of random names and numbers by heart. Three groups of students read one half of the book, for the same number of steps:
# "alone" reads the book, "logits" reads it with the teacher's probabilities, "text" reads what the teacher writes below each name.
# The other half of the names is never mentioned to them.

# %%
facts = read_record("knowledge-distilled")["runs"]
print(f"the teacher recalls {facts['teacher-0']['recalled']:.1%} of {facts['teacher-0']['method']['entries']:,} entries")
for way in ("alone", "logits", "text"):
    students = [facts[f"{way}-{seed}"] for seed in range(3)]
    read, unread = (", ".join(f"{one[half]:.2%}" for one in students) for half in ("read", "unread"))
    print(f"{way:7} the half that it read: {read}; the half that only the teacher knows: {unread}")
print("chance: 0.10%, since a number has three digits")

# %% [markdown]
# > **Key observation.** On the unread half every student stays at chance: a student learns no fact that was not in its text. On
# > the half that was read, the three groups overlap, so no gain from the teacher shows. A guess at the reason: a random number
# > has no second-best answer that could teach anything.
#
# ## Several teachers, one student
#
# DeepSeek-V4's last stage trains specialists first. One student then learns from all of them, on text that the student writes,
# and each teacher judges its own tasks. Ours is group E. Both students begin as the best of the three "true steps" students,
# which solves problems and has become worse on text. "Four teachers" has a specialist each for stories, Bibles, and code and
# mathematics, and its own earlier self for problems. A quarter of its steps are on its own answers. "No teachers" takes equally many
# steps on text and problems.

# %%
before = of("true steps")[1]
print(f"before: text {text_bits(before):.3f} bits per byte, problems {solved(before):.1%}")
for name in ("four teachers", "no teachers"):
    print(f"{name:14} text {', '.join(f'{value:.3f}' for value in bits[name])}; problems "
          f"{', '.join(f'{solved(one):.1%}' for one in of(name))}; {np.mean([seconds(one) for one in of(name)]):.0f} s")
print(pairs("four teachers", "no teachers", text_bits), "bits per byte")
print(pairs("four teachers", "no teachers", solved, unit=100), "points of problems solved")

# %% [markdown]
# > **Key observation.** With four teachers the student is better on text and solves fewer problems than with none: both are
# > shown, at equal steps. So here several teachers win on one side and lose on the other.
#
# At equal *time* nothing is known: the student with teachers took about twice as long, and one without teachers that uses
# this time is missing. The two students differ in several things: the loss, the text, the share of own answers. DeepSeek's specialists were
# made by reinforcement learning; that case is not tested here.
#
# ## One more exercise, without a check
#
# Make a student of your own: `minimoe distill --teacher teacher --student nano --tasks 0.5 --steps 600 --out runs/mine`. Can you
# close more of the gap than "taught" in Figure 3, at equal tokens? What would have to hold on three seeds before you believe it?

# %%
print(f"this notebook took {time.monotonic() - began:.0f} seconds")
