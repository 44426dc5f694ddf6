"""``minimoe distill``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe.cli import run_options as option
from minimoe.cli.reasoning import check_length, check_share
from minimoe.cli.teachers import Teachers, load_teachers
from minimoe.cli.train import report
from minimoe.console import Bar, counter, messages, start
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer, TrainingData
    from minimoe.distill import Distillation, DistillRecipe
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig, TrainResult

MOST_PROMPTS = 20_000  # beyond that they are answered again


TeacherNames = Annotated[
    list[str],
    typer.Option(help="Checkpoint or shipped model to learn from; again as DOMAIN=CHECKPOINT for specialists."),
]
Student = Annotated[
    str,
    typer.Option(help="Preset (nano, small, v4-nano, v4-small), or a checkpoint or shipped model to train on from."),
]
CacheFolder = Annotated[Path | None, typer.Option(help="Folder for its K best words; the next student reads them.")]
Sampled = Annotated[
    int, typer.Option(help="Problems that the teacher solves first; read are those it solves right, its steps.")
]
Trained = Annotated[
    bool, typer.Option("--trained", help="Of a name that is a preset too, the package's trained model.")
]


def distill(
    teacher: TeacherNames,
    student: Student,
    out: option.Out,
    steps: option.Steps = None,
    loss: Annotated[str, typer.Option(help="forward_kl, reverse_kl, jsd or hinton.")] = "forward_kl",
    temperature: Annotated[float, typer.Option(help="Divides the logits of both models in the loss.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="Weight of the teacher; the rest is plain cross-entropy.")] = 0.9,
    top_k: Annotated[int | None, typer.Option(help="Keep the teacher's K best words; default: all.")] = None,
    cache: CacheFolder = None,
    on_policy: Annotated[float, typer.Option(help="Share of steps on problems that the student answers itself.")] = 0.0,
    tasks: option.Tasks = 0.0,
    sampled: Sampled = 0,
    trained: Trained = False,
    dense: Annotated[bool, typer.Option("--dense", help="The preset's dense model of equal active FLOPs.")] = False,
    seed: Annotated[int, typer.Option(help="Decides weights, order of data, problems and dropout.")] = 0,
    batch_size: option.BatchSize = None,
    learning_rate: option.LearningRate = None,
    text: option.Text = None,
    checkpoint_every: option.CheckpointEvery = None,
    eval_every: option.EvalEvery = None,
    resume: option.Resume = False,
    json: option.Json = False,
) -> int:
    """Train a student on text and on what a teacher thinks of it.

    Ctrl-C saves and stops; --resume with the same options continues. With --tasks or --on-policy the student answers
    reasoning problems in the end and is graded. With --alpha 0 only text passes: --sampled alone teaches by that.

    Example: minimoe distill --teacher runs/small --student nano --steps 500 --out runs/student

    Example: minimoe distill --teacher teacher --student nano --trained --tasks 0.9 --sampled 5000 --out runs/solver

    Example: minimoe distill --teacher small --teacher reasoning=teacher --student nano --tasks 0.5 --out runs/both
    """
    from minimoe.data import choose_documents
    from minimoe.data.tasks import DOMAIN
    from minimoe.distill import Distillation, DistillRecipe, task_prompts
    from minimoe.progress import grade

    recipe = DistillRecipe(loss, temperature, alpha, top_k, on_policy)
    check_cache(cache, top_k, teacher)
    check_share(tasks)
    check_sampled(sampled, tasks)
    teachers = load_teachers(teacher)
    changes = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    changes |= {"checkpoint_every": checkpoint_every, "eval_every": eval_every}
    run, initial = choose_student(student, changes, teachers, dense=dense, trained=trained)
    graded = bool(tasks or on_policy)
    check_fit(teachers, run, recipe, cache, graded=graded)
    reading = Reading(text, choose_documents(text) if tasks < 1 else [], tasks, sampled)
    teachers.check(reading.domains | ({DOMAIN} if graded else set()))
    prompts = task_prompts(min(run.recipe.steps * run.recipe.batch_size, MOST_PROMPTS), seed=seed) if on_policy else []
    method = Distillation(recipe, teachers.by_domain(), prompts)
    run = dataclasses.replace(run, data=reading.about(), method=method.to_dict() | {"cached": cache is not None})
    result = learn(student, run, initial, teachers, method, reading, cache, out=out, resume=resume)
    answers = grade(result.model, teachers.tokenizer) if graded and not result.interrupted else None
    return report(out, run, result, json, answers, {"teacher": ", ".join(teacher), "student": student})


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a student reads.

    Attributes:
      text: the folder or file that was named; None for the package's texts.
      documents: its texts; none where it reads problems alone.
      tasks: share of reasoning problems among its tokens, 0 to 1.
      sampled: problems that the teacher solves first; with 0 the problems come with the package's own steps.
    """

    text: Path | None
    documents: list[Document]
    tasks: float
    sampled: int

    @property
    def domains(self) -> set[str]:
        """Those of the training text."""
        return {one.domain for one in self.documents if one.split == "train"}

    def about(self) -> dict[str, Any]:
        """The text and the problems of a run, as its config keeps them."""
        from minimoe.data import describe_data

        named = {"name": "reasoning problems"}
        about: dict[str, Any] = dict(describe_data(self.text, self.documents) if self.documents else named)
        return about | {"tasks": self.tasks} | ({"sampled": self.sampled} if self.sampled else {})


def learn(
    student: str,
    run: RunConfig,
    initial: MoETransformer | None,
    teachers: Teachers,
    method: Distillation,
    reading: Reading,
    cache: Path | None,
    *,
    out: Path,
    resume: bool,
) -> TrainResult:
    """Trains the student in ``out``: what its teacher has to write or to cache comes first, and is kept."""
    from minimoe.cli.copies import tell_copies
    from minimoe.data.tasks import DOMAIN
    from minimoe.distill.teacher_text import check_teacher_of
    from minimoe.model import model_fingerprint
    from minimoe.progress import check_resume, draw_curve, train_with_bar
    from minimoe.training.mixing import mixed_data
    from minimoe.training.new_run import describe_run
    from minimoe.training.run_folder import TEXTS_FOLDER

    tokenizer = teachers.tokenizer
    if reading.sampled:
        check_teacher_of(out / TEXTS_FOLDER, model_fingerprint(teachers.of(DOMAIN)))
    first = check_resume(out, run, resume, method=True)
    problems = None
    if reading.sampled:
        problems = solved_right(out, teachers.of(DOMAIN), tokenizer, reading.sampled, run.recipe.seed)
    data, validation = mixed_data(reading.documents, tokenizer, run, reading.tasks, problems=problems)
    read = f"{data.num_tokens:,} training tokens"
    start(f"teacher: {teachers.description}; student {student}: {describe_run(run)}; {read}")
    tell_copies(reading.text, reading.documents)
    if cache is not None:
        (teacher,) = teachers  # `check_cache` refuses several
        guide = fill_cache(cache, run, method.recipe, teacher, data, tokenizer)
        method = dataclasses.replace(method, teacher=guide)
    result = train_with_bar(
        "distill", run, data, validation, tokenizer, first=first, out=out, resume=resume, model=initial, method=method
    )
    draw_curve(out, result)
    return result


def check_sampled(sampled: int, tasks: float) -> None:
    """Raises:
    UserError: if the teacher is to solve problems, and no problems are to be read.
    """
    if sampled < 0 or (sampled and not tasks):
        raise UserError(
            f"--sampled {sampled} goes with --tasks, their share of the tokens; try --tasks 0.9 --sampled 5000"
        )


def check_cache(cache: Path | None, top_k: int | None, teachers: list[str]) -> None:
    """Raises:
    UserError: if it is not known what to keep, or whose.
    """
    if cache is None:
        return
    if top_k is None:
        raise UserError(
            f"--cache {cache} holds the teacher's K best words; say how many with --top-k, 32 is a fair start"
        )
    if len(teachers) > 1:
        raise UserError(
            f"--cache {cache} holds the words of one teacher, and there are {len(teachers)}; leave --cache out"
        )


def choose_student(
    student: str, changes: dict[str, Any], teachers: Teachers, *, dense: bool, trained: bool
) -> tuple[RunConfig, MoETransformer | None]:
    """The student's run, and its weights if it is a checkpoint: those its codes stand for, if it is quantized. A checkpoint
    is trained by the recipe of nano.

    Raises:
      UserError: if there is no such preset or checkpoint, or its tokenizer is not the teacher's.
    """
    from minimoe.config import PRESETS
    from minimoe.hub import load_pretrained, resolve_with_tokenizer, shipped
    from minimoe.quant import dequantize_model
    from minimoe.training import RECIPES
    from minimoe.training.new_run import make_run

    tokenizer = teachers.tokenizer
    if student in PRESETS and student in RECIPES and not trained:
        run = make_run(student, changes, dense=dense, dropout=None, tokenizer=tokenizer, data={})
        return dataclasses.replace(run, model=run.model.with_vocabulary(teachers.vocab_size)), None
    if dense:
        raise UserError(f"--dense goes with a preset, and --student {student} is none; leave --dense out")
    if student not in shipped() and (trained or not Path(student).exists()):
        folder = "" if trained else ", no folder"
        raise UserError(
            f"--student {student} is no preset ({', '.join(RECIPES)}){folder} and no model of the package "
            f"({', '.join(shipped())}); name one of these"
        )
    if trained:
        model, its_tokenizer, config = load_pretrained(student)
        assert its_tokenizer is not None, "shipped models have theirs"
    else:
        model, its_tokenizer, config, _ = resolve_with_tokenizer(student)
    if its_tokenizer.fingerprint != tokenizer.fingerprint:
        theirs = f"{tokenizer.name} ({tokenizer.vocab_size} ids)"
        raise UserError(
            f"--student {student} reads with the tokenizer {its_tokenizer.name} ({its_tokenizer.vocab_size} ids), the "
            f"teacher with {theirs}; distil between models of one tokenizer"
        )
    run = make_run("nano", changes, dense=config.moe is None, dropout=None, tokenizer=tokenizer, data={})
    return dataclasses.replace(run, model=config), dequantize_model(model)


def solved_right(out: Path, teacher: MoETransformer, tokenizer: Tokenizer, num: int, seed: int) -> list[Document]:
    """What the teacher writes below ``num`` problems, kept in ``out``, where it ends in the right answer.

    Raises:
      UserError: if it solves none.
    """
    from minimoe.distill import task_prompts
    from minimoe.distill.teacher_text import answered_right, texts_of_solved, written
    from minimoe.progress import NEW_TOKENS
    from minimoe.training.run_folder import TEXTS_FOLDER

    prompts = task_prompts(num, seed=seed)
    with Bar("teacher writes", num) as bar:
        folder, report = out / TEXTS_FOLDER, counter(bar)
        said = written(folder, lambda: teacher, "reasoning", prompts, tokenizer, NEW_TOKENS, report)
    right = answered_right(said.documents, seed)
    messages.print(f"the teacher solved {sum(right):,} of {num:,} problems ({sum(right) / num:.0%})")
    return texts_of_solved(said.documents, right)


def check_fit(
    teachers: Teachers,
    run: RunConfig,
    recipe: DistillRecipe,
    cache: Path | None,
    *,
    graded: bool,
) -> None:
    """Everything that can be wrong and is quick to see, before any work.

    Raises:
      UserError: if teacher and student, the folder of the cache, or the length of reasoning problems do not fit.
    """
    from minimoe.distill import check_teacher, load_cache
    from minimoe.distill.cached import holds_cache
    from minimoe.files import check_folder

    for model in teachers:
        check_teacher(model, run)
    recipe.check_vocabulary(run.model.vocab_size)
    if cache is not None:
        check_folder(cache, holds_cache, "a teacher cache")
    if cache is not None and holds_cache(cache):
        load_cache(cache, tokenizer=teachers.tokenizer.fingerprint, k=recipe.top_k, temperature=recipe.temperature)
    if graded:
        check_length(run, teachers.tokenizer, recipe.max_new_tokens)


def fill_cache(
    folder: Path,
    run: RunConfig,
    recipe: DistillRecipe,
    teacher: MoETransformer,
    data: TrainingData,
    tokenizer: Tokenizer,
) -> Any:
    """The teacher's answers on disk, with a progress bar; those that are there are kept."""
    from minimoe.distill import cache_teacher

    with Bar("teacher", run.recipe.steps) as bar:
        cache = cache_teacher(folder, run, recipe, teacher, data, tokenizer, progress=counter(bar))
    messages.print(f"{folder}: {cache.steps} steps, {cache.num_bytes / 1e6:,.1f} MB")
    return cache
