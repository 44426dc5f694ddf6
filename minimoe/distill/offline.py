"""Trains a student with one teacher or several. A teacher answers during training, or before it.

`Distillation` is a method of `minimoe.training.train`, and `distill` calls `train` with that method. So distillation has
the checkpoints, the resuming, the evaluations and the guard against non-finite losses of every training.

    live        the teacher reads each batch, no gradient, and all its logits are the target
    top-k       only its k best words and the mass of the others
    cached      the same, from disk: `cache_teacher` writes it once, and any number of students read it
    several     each row of a batch is judged by the teacher of its domain
    sequences   `sample_documents` lets the teacher write, and the student trains on that text as on any other
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.data import Batch, Document, Tokenizer, TrainingData
from minimoe.distill.cached import CacheHeader, TeacherCache, TopK, load_cache, top_k_targets, write_cache
from minimoe.distill.objective import DistillObjective, Targets
from minimoe.distill.on_policy import Rollout, Rollouts, is_on_policy
from minimoe.distill.recipe import DistillRecipe
from minimoe.errors import UserError
from minimoe.inference import continue_prompts
from minimoe.model import MoETransformer, model_fingerprint
from minimoe.training import Combined, Method, RunConfig, StepChanges, TrainResult, train

Teacher: TypeAlias = MoETransformer | TeacherCache | Mapping[str, MoETransformer]


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation(Method):
    """Training on text and on what a teacher thinks of it, as a method of `minimoe.training.train`.

    Args:
      recipe: how much the teacher counts, and by which measure.
      teacher: a model with the student's vocabulary, sparse, dense or quantized; a cache of one; or several models,
        such as specialists, by the name of the domain of the text that each judges. The name ``""`` stands for all
        domains without a teacher of their own. Of several, those that have a row in the batch read all of it and the
        rows of each are taken out after: shapes stay the same, so each is compiled once.
      prompts: for on-policy steps, documents to be continued, such as `task_prompts`.
      weights: of the rows of a domain in the divergence; 1 for those not named.

    Example:
      >>> teacher = MoETransformer(ModelConfig.preset("nano"), rngs=nnx.Rngs(0))
      >>> values = Distillation(DistillRecipe(alpha=0.5), teacher).to_dict()
      >>> values["recipe"]["alpha"], values["teacher"] == model_fingerprint(teacher)
      (0.5, True)
    """

    name: ClassVar[str] = "distillation"
    recipe: DistillRecipe
    teacher: Teacher = dataclasses.field(repr=False)
    prompts: Sequence[Document] = dataclasses.field(default=(), repr=False)
    weights: Mapping[str, int | float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The settings, and fingerprints of the teacher and the prompts."""
        cached = isinstance(self.teacher, TeacherCache)
        texts = hashlib.sha256(repr([(one.domain, one.text) for one in self.prompts]).encode())
        return {
            "name": self.name,
            "recipe": self.recipe.to_dict(),
            "teacher": _teacher_fingerprint(self.teacher),
            "cached": cached,
            "prompts": texts.hexdigest() if self.prompts else None,
            "weights": dict(self.weights),
        }

    def changes(self, run: RunConfig, model: MoETransformer, data: TrainingData, tokenizer: Tokenizer) -> StepChanges:
        """An objective that knows what the teacher says of each batch; nothing if no step needs a teacher."""
        if not self.recipe.needs_teacher:
            return StepChanges()
        guide = _Guide(run, self.recipe, self.teacher, data, tokenizer, self.prompts, self.weights)
        own_text = guide.batch_for if self.recipe.on_policy_fraction else None
        return StepChanges(DistillObjective(self.recipe), batch_for=own_text, extra_for=guide.extra_for)


def _teacher_fingerprint(teacher: Teacher) -> Any:
    if isinstance(teacher, TeacherCache):
        return teacher.header.teacher
    if isinstance(teacher, Mapping):
        return {domain: model_fingerprint(model) for domain, model in sorted(teacher.items())}
    return model_fingerprint(teacher)


def distill(
    run: RunConfig,
    recipe: DistillRecipe,
    teacher: Teacher,
    data: TrainingData,
    validation: list[Document],
    tokenizer: Tokenizer,
    *,
    prompts: Sequence[Document] = (),
    weights: Mapping[str, int | float] | None = None,
    method: Method | None = None,
    **training: Any,
) -> TrainResult:
    """Trains a student on text and on what a teacher thinks of it: `minimoe.training.train` with `Distillation`.

    Args:
      run: the student's config and training recipe.
      recipe, teacher, prompts, weights: see `Distillation`.
      data, validation, tokenizer: as for `minimoe.training.train`.
      method: another method beside distillation, such as `minimoe.quant.QuantizationAware`.
      training: the other arguments of `minimoe.training.train`: out, resume, model (to start from), on_record, on_step.

    Raises:
      UserError: if teacher and student do not fit, and as `minimoe.training.train`.

    Example:
      >>> from minimoe.data import ByteTokenizer, Document, training_data
      >>> from minimoe.training import Recipe, RunConfig
      >>> config = ModelConfig.preset("nano").dense_equivalent().replace(vocab_size=257, num_layers=1, context_length=8)
      >>> run = RunConfig(config, Recipe(steps=1, batch_size=2), {}, "byte")
      >>> texts = [Document("a", split, split, "to be or not to be") for split in ("train", "val")]
      >>> data = training_data(texts, ByteTokenizer())
      >>> teacher = MoETransformer(config, rngs=nnx.Rngs(0))
      >>> distill(run, DistillRecipe(alpha=1.0), teacher, data, texts, ByteTokenizer()).step
      1
    """
    taught: Method = Distillation(recipe, teacher, prompts, weights or {})
    taught = taught if method is None else Combined(taught, method)
    return train(run, data, validation, tokenizer, method=taught, **training)


@nnx.jit(static_argnames=("top_k", "temperature"))
def ask_teacher(
    model: MoETransformer,
    tokens: Int[Array, "B L"],
    where: Bool[Array, "B L"],
    *,
    top_k: int | None = None,
    temperature: int | float = 1.0,
) -> Float[Array, "B L V"] | TopK:
    """All logits of a teacher, or its `top_k_targets`."""
    logits, _ = model(tokens, where=where)
    return logits if top_k is None else top_k_targets(logits, top_k, temperature)


class _Guide:
    """Gives the batches of one run, and the teachers' answers to each of them."""

    def __init__(self, run, recipe, teacher, data, tokenizer, prompts, weights) -> None:
        self.run, self.recipe = run, recipe
        self.names = tuple(dict.fromkeys([*data.domains, *(prompt.domain for prompt in prompts)]))
        self.cache: TeacherCache | None = None
        self.teachers: dict[str, MoETransformer] = {}
        if isinstance(teacher, TeacherCache):
            self.cache = _fitting_cache(teacher, run, recipe, data, tokenizer)
        elif isinstance(teacher, Mapping):
            rest = dict.fromkeys(self.names, teacher[""]) if "" in teacher else {}
            self.teachers = rest | {name: model for name, model in teacher.items() if name}
        else:
            self.teachers = dict.fromkeys(self.names, teacher)
        missing = [] if self.cache else [name for name in self.names if name not in self.teachers]
        if missing:
            raise UserError(f"no teacher for {', '.join(missing)}; name one for each domain, or leave the text out")
        for model in self.teachers.values():
            check_teacher(model, run)
        recipe.check_vocabulary(run.model.vocab_size)
        self.weights = _checked_weights(weights or {}, self.names)
        self.rollouts = Rollouts(prompts, tokenizer, run, recipe, self.names) if recipe.on_policy_fraction else None

    def batch_for(self, step: int, batch: Batch, model: MoETransformer) -> Batch:
        """The batch itself. In an on-policy step, a batch that the student writes."""
        return self.rollouts.batch(step, model) if self.rollouts and self._on_policy(step) else batch

    def extra_for(self, step: int, batch: Batch) -> Targets:
        """The teachers' answers to the batch."""
        names = [self.names[domain] for domain in batch.domains]
        rows = jnp.array([self.weights.get(name, 1.0) for name in names], jnp.float32)
        found = self._ask(names, batch) if self.cache is None else self.cache.batch(step)
        answers: Any = tuple(map(jnp.asarray, jax.tree.leaves(found))) if isinstance(found, TopK) else found
        counted = batch.written if isinstance(batch, Rollout) else batch.where
        return Targets(answers, rows, jnp.array(self._on_policy(step)), jnp.asarray(counted))

    def _on_policy(self, step: int) -> bool:
        return is_on_policy(self.run.recipe.seed, step, self.recipe.on_policy_fraction)

    def _ask(self, names: list[str], batch: Batch) -> Float[Array, "B L V"] | TopK:
        tokens, where = jnp.asarray(batch.tokens), jnp.asarray(batch.where)
        found: Any = None
        for model in {id(self.teachers[name]): self.teachers[name] for name in names}.values():
            top_k, temperature = self.recipe.top_k, self.recipe.temperature
            answers = ask_teacher(model, tokens, where, top_k=top_k, temperature=temperature)
            own = jnp.array([self.teachers[name] is model for name in names])
            found = answers if found is None else jax.tree.map(lambda a, b, own=own: _rows(own, a, b), answers, found)
        return found


def check_teacher(teacher: MoETransformer, run: RunConfig) -> None:
    """Checks that a model can teach the student of ``run``.

    Raises:
      UserError: if it has another vocabulary or a shorter context.
    """
    for name, fits in (("vocab_size", int.__eq__), ("context_length", int.__ge__)):
        theirs, ours = getattr(teacher.config, name), getattr(run.model, name)
        if not fits(theirs, ours):
            words = "the student's must be the same" if name == "vocab_size" else "the student's must not be longer"
            raise UserError(f"the teacher has {name}={theirs}, the student {ours}; {words}")


def cache_teacher(
    folder: str | Path,
    run: RunConfig,
    recipe: DistillRecipe,
    teacher: MoETransformer,
    data: TrainingData,
    tokenizer: Tokenizer,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """Writes, or continues, the teacher's k best words for every batch that ``run`` will train on.

    Any student with the same context, batch size, seed, number of steps and data can use it.

    Args:
      folder: new, empty, or a cache of the same. recipe: ``top_k``, which must be given, and ``temperature`` count.
      progress: called with (steps done, steps in all).

    Raises:
      UserError: if teacher and student do not fit, ``top_k`` is None, or the folder holds something else.
    """
    if recipe.top_k is None:
        raise UserError("a cache holds the k best words, but top_k=None; give top_k, 32 is a fair start")
    check_teacher(teacher, run)
    header = CacheHeader(teacher=model_fingerprint(teacher), **_cache_of(run, recipe, data, tokenizer))
    steps = run.recipe.steps

    def answers(step: int) -> Any:
        batch = data.batch(header.seed, step, header.batch_size, header.length)
        tokens, where = jnp.asarray(batch.tokens), jnp.asarray(batch.where)
        found = ask_teacher(teacher, tokens, where, top_k=recipe.top_k, temperature=recipe.temperature)
        if progress is not None:
            progress(step + 1, steps)
        return found

    return write_cache(folder, header, answers, steps)


def sample_documents(
    teacher: MoETransformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Document],
    *,
    max_new_tokens: int = 96,
    temperature: int | float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Document]:
    """What the teacher writes below prompts, as training documents: distillation through text alone.

    Only the words pass from teacher to student, so the two need not share a vocabulary. DeepSeek-R1's dense
    students were made this way. Wrong answers may be thrown out first, with `minimoe.data.check_answer`.

    Args:
      prompts: documents whose text is to be continued, such as `task_prompts`.
      max_new_tokens: tokens at most; a document ends where the teacher ends it. temperature: 0 is greedy.
      seed: another seed is another text. batch_size: prompts at a time. progress: see `continue_prompts`.

    Returns:
      One document a prompt, in order, prompt included; its key says that it was sampled.

    References:
      DeepSeek-AI, `DeepSeek-R1 <https://arxiv.org/abs/2501.12948>`_, section 2.4 of its first version.
    """
    ids = [[tokenizer.eot_id, *encoded] for encoded in tokenizer.encode_documents([one.text for one in prompts])]
    new = continue_prompts(
        teacher,
        ids,
        max_new_tokens,
        stop_token=tokenizer.eot_id,
        temperature=temperature,
        key=jax.random.key(seed),
        batch_size=batch_size,
        progress=progress,
    )
    texts = [tokenizer.decode([token for token in tokens if token != tokenizer.eot_id]) for tokens in new]
    return [
        dataclasses.replace(prompt, key=f"{prompt.key}/sampled/{seed}", text=prompt.text + text)
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _rows(own: Bool[Array, "B"], mine: Array, others: Array) -> Array:
    """``mine`` in the rows where ``own`` is True, ``others`` in the other rows."""
    return jnp.where(own.reshape(-1, *[1] * (mine.ndim - 1)), mine, others)


def _checked_weights(weights: Mapping[str, int | float], names: tuple[str, ...]) -> dict[str, float]:
    unknown = [name for name in weights if name not in names]
    if unknown or any(not 0 <= weight < float("inf") for weight in weights.values()):
        raise UserError(f"weights={dict(weights)} must be finite, not negative, and of domains: {', '.join(names)}")
    return {name: float(weight) for name, weight in weights.items()}


def _cache_of(run: RunConfig, recipe: DistillRecipe, data: TrainingData, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of a header, without those of the teacher."""
    return {
        "tokenizer": tokenizer.fingerprint,
        "data": data.fingerprint,
        "vocab_size": run.model.vocab_size,
        "k": recipe.top_k,
        "seed": run.recipe.seed,
        "batch_size": run.recipe.batch_size,
        "length": run.model.context_length,
        "temperature": recipe.temperature,
    }


def _fitting_cache(cache: TeacherCache, run, recipe, data, tokenizer) -> TeacherCache:
    if recipe.on_policy_fraction:
        raise UserError("a cache knows only the text it was made of; on-policy steps need the teacher itself")
    found = load_cache(cache.folder, **_cache_of(run, recipe, data, tokenizer))
    if found.steps < run.recipe.steps:
        raise UserError(
            f"{found.folder} holds {found.steps} of {run.recipe.steps} steps; continue it with cache_teacher, "
            "or train for fewer"
        )
    return found
