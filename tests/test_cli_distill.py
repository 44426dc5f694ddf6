"""`minimoe distill`: the folder it leaves, the numbers it prints, what it refuses before any work."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from flax import nnx

import minimoe.config
from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer
from minimoe.cli import app
from minimoe.data import ByteTokenizer, load_tokenizer
from minimoe.distill import offline as distill_module
from minimoe.distill.teacher_text import Written, written
from minimoe.errors import UserError
from minimoe.experiments import (
    EXPERIMENTS,
    Learning,
    Run,
    distillation,
    distillation_ways,
    reasoning,
    specialists,
    students,
)
from minimoe.experiments.scores import solved
from minimoe.experiments.workplace import Workplace
from minimoe.hub import load, save
from minimoe.model import model_fingerprint
from minimoe.progress import draw_curve
from minimoe.quant import dequantize_model, is_quantized, quantize_model
from minimoe.training import Recipe, load_checkpoint
from minimoe.training import recipe as recipes
from minimoe.training.checkpoint import CheckpointFolder
from minimoe.training.mixing import mixed_data
from minimoe.training.run_folder import CURVE_FILE, read_run_config

TINY = ModelConfig(
    vocab_size=2048, d_model=8, num_layers=1,
    attention=GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=4),
    context_length=160,
    moe=MoEConfig(8, 8, 4, 2, num_shared_experts=1, score="sigmoid", dispatch="dense"),
)  # fmt: skip
RECIPE = Recipe(steps=3, batch_size=2, learning_rate=0.01, warmup_steps=1, log_every=1, checkpoint_every=2)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path, teachers):
    for name in ("tiny", "nano"):
        monkeypatch.setitem(minimoe.config.PRESETS, name, TINY)
        monkeypatch.setitem(recipes.RECIPES, name, RECIPE)
    for module in ("minimoe.data", "minimoe.data.sources"):
        monkeypatch.setattr(f"{module}.documents", few_documents)
    monkeypatch.setattr("minimoe.progress.draw_curve", lambda out, result: (out / CURVE_FILE).touch())
    monkeypatch.setattr("minimoe.progress.GRADED", 1)
    monkeypatch.setattr("minimoe.training.mixing.VALIDATION_PROBLEMS", 5)
    for folder in teachers.iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.chdir(tmp_path)


def few_documents(domain=None, split=None):
    from minimoe.data.corpus import documents

    found = documents("austen", "train")[:1] + documents("austen", "val")[:1]
    return [document for document in found if split in (None, document.split)]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Saved folders: a teacher, one in int8, and models of another tokenizer or shorter context."""
    folder = tmp_path_factory.mktemp("teachers")
    tokenizer = load_tokenizer("bpe2048")
    model = MoETransformer(TINY, rngs=nnx.Rngs(1))
    save(model, folder / "teacher", tokenizer)
    save(quantize_model(model, "int8"), folder / "int8", tokenizer)
    save(MoETransformer(TINY.replace(vocab_size=257), rngs=nnx.Rngs(1)), folder / "bytes", ByteTokenizer())
    save(MoETransformer(TINY.replace(context_length=64), rngs=nnx.Rngs(1)), folder / "short", tokenizer)
    save(model, folder / "mute")
    return folder


def run_json(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert app.run(["distill", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # one object and nothing else


def start(*more: str) -> tuple[str, ...]:
    return ("--teacher", "teacher", "--student", "tiny", "--out", "new", *more)


def test_tasks_and_own_text(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("minimoe.progress.draw_curve", draw_curve)  # the other tests leave an empty picture
    values = run_json(capsys, *start("--dense", "--tasks", "0.5", "--on-policy", "0.5", "--loss", "hinton"))
    names = {"config.json", "tokenizer.json", "metrics.jsonl", "curve.png", "checkpoints"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    assert (values["step"], values["steps"], values["interrupted"]) == (3, 3, False)
    assert set(values["per_domain"]) == {"austen", "reasoning"}
    assert set(values["tasks"]["exact_match"]) == set("12345")
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")
    student, _, run = load_checkpoint(tmp_path / "new")
    assert student.config == TINY.dense_equivalent()
    assert (run.method["name"], run.method["recipe"]["divergence"]) == ("distillation", "hinton")
    assert (run.data["name"], run.data["tasks"]) == ("minimoe-corpus", 0.5)
    assert "start" not in run.fingerprints


def test_a_cache_serves_the_next_student_and_a_run_resumes(capsys, tmp_path):
    arguments = start("--top-k", "4", "--cache", "cache", "--alpha", "1")
    first = run_json(capsys, *arguments)
    assert first["tasks"] is None
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    assert stamps
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "3")
    assert CheckpointFolder(tmp_path / "new").steps() == [2]
    resumed = run_json(capsys, *arguments, "--resume")
    assert (resumed["loss"], resumed["bits_per_byte"]) == (first["loss"], first["bits_per_byte"])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")} == stamps
    named = ("--teacher", "austen=teacher", "--student", "tiny", "--out", "named", *arguments[6:])
    assert run_json(capsys, *named)["loss"] == first["loss"], "the teacher of the only domain is the teacher of all"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")} == stamps
    assert app.run(["distill", *arguments[:-1], "0.5", "--resume"]) == 2
    assert "method recipe.alpha=0.5" in capsys.readouterr().err
    assert app.run(["train", "--config", "tiny", "--out", "new", "--resume"]) == 2, "plain training is another run"
    assert "was started with" in capsys.readouterr().err


def test_training_with_problems_and_without_a_teacher(capsys, tmp_path):
    assert app.run(["train", "--config", "tiny", "--tasks", "0.5", "--out", "new", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values["per_domain"]) == {"austen", "reasoning"}
    assert set(values["tasks"]["exact_match"]) == set("12345")
    assert read_run_config(tmp_path / "new").data["tasks"] == 0.5
    assert app.run(["train", "--config", "tiny", "--tasks", "2", "--out", "other"]) == 2
    assert "--tasks 2.0" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_teacher_solves_problems_first(capsys, monkeypatch, tmp_path):
    """Two files of solutions; those that are right are read, by a student with no other help; a resumed run keeps them."""
    monkeypatch.setattr("minimoe.distill.teacher_text.PER_FILE", 4)
    monkeypatch.setattr("minimoe.distill.teacher_text.check_answer", lambda problem, text: problem.level != 1)
    arguments = start("--tasks", "1", "--sampled", "6", "--alpha", "0")
    first = run_json(capsys, *arguments)
    assert read_run_config(tmp_path / "new").data["sampled"] == 6
    files = sorted((tmp_path / "new" / "sampled").iterdir())
    texts = [json.loads(path.read_text())["documents"] for path in files]
    assert [len(some) for some in texts] == [4, 2]
    assert all(document["text"].startswith("Q: ") for some in texts for document in some)
    stamps = [path.stat().st_mtime_ns for path in files]
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    assert app.run(["distill", *arguments, "--resume"]) == 0
    assert "the teacher solved 4 of 6 problems (67%)" in capsys.readouterr().err
    assert run_json(capsys, *arguments, "--resume")["bits_per_byte"] == first["bits_per_byte"]
    assert [path.stat().st_mtime_ns for path in files] == stamps
    monkeypatch.setattr("minimoe.distill.teacher_text.check_answer", lambda problem, text: False)
    assert app.run(["distill", *arguments[:-6], "--out", "other", "--tasks", "1", "--sampled", "2"]) == 2
    assert "solved none of 2 problems" in capsys.readouterr().err


def test_a_shorter_list_of_prompts_leaves_no_hole(teachers, tmp_path):
    from minimoe.distill import task_prompts
    from minimoe.hub import load

    model, tokenizer, _ = load(teachers / "int8")
    few, more = (written(tmp_path, lambda: model, "reasoning", task_prompts(n), tokenizer, 4) for n in (2, 3))
    assert [len(few.documents), len(more.documents)] == [2, 3]
    assert more.documents[0].text.startswith(task_prompts(1)[0].text)


def test_texts_of_another_teacher_are_refused_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("minimoe.distill.teacher_text.check_answer", lambda problem, text: True)
    arguments = start("--tasks", "1", "--sampled", "2", "--alpha", "0")
    run_json(capsys, *arguments)
    (path,) = (tmp_path / "new" / "sampled").iterdir()
    capsys.readouterr()
    for other in (
        ["distill", *start("--alpha", "0", "--resume")],
        ["train", "--out", "new", "--resume"],
    ):
        assert app.run(other) == 2
        assert capsys.readouterr().err.count("\n") == 1
    values = json.loads(path.read_text())
    assert values["teacher"] == model_fingerprint(load("teacher")[0])
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    (tmp_path / "new" / "config.json").unlink()
    (tmp_path / "new" / "metrics.jsonl").unlink()
    capsys.readouterr()
    for resumed in ([], ["--resume"]):
        changed = [word if word != "teacher" else "int8" for word in arguments]
        assert app.run(["distill", *changed, *resumed]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert f"{path.relative_to(tmp_path)} was written by another teacher ({values['teacher'][:12]}...)" in said
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "teacher"}))
    (tmp_path / "new" / "tokenizer.json").unlink()
    run_json(capsys, *arguments)  # a file of an earlier version names no teacher
    path.write_text("{")
    assert app.run(["distill", *arguments, "--resume"]) == 2
    assert "is broken" in capsys.readouterr().err


def test_trained_students_of_the_package(capsys, monkeypatch, tmp_path):
    """Their names may be those of presets, or not; `--trained` tells."""
    from minimoe.hub import load

    monkeypatch.setattr("minimoe.hub.pretrained.shipped", lambda: models)
    for module in ("minimoe.hub", "minimoe.hub.checkpoints"):
        monkeypatch.setattr(f"{module}.shipped", lambda: models)
    models = dict.fromkeys(("tiny", "pupil"), lambda: load(tmp_path / "int8"))
    fresh = run_json(capsys, *start("--alpha", "1", "--steps", "1"))
    assert "start" not in read_run_config(tmp_path / "new").fingerprints
    for arguments in (["--student", "tiny", "--trained"], ["--student", "pupil"]):
        shutil.rmtree("new")
        values = run_json(capsys, *start(*arguments, "--alpha", "1", "--steps", "1"))
        assert values["loss"] < fresh["loss"] / 5, "it begins from what the teacher was rounded to"
        begun = read_run_config(tmp_path / "new").fingerprints["start"]
        assert begun == model_fingerprint(dequantize_model(load("int8")[0]))
    assert app.run(["distill", *start("--student", "int8", "--trained"), "--out", "other"]) == 2
    assert "no model of the package (tiny, pupil)" in capsys.readouterr().err


def test_a_quantized_student_is_trained_in_floats(capsys, tmp_path):
    values = run_json(capsys, *start("--student", "int8", "--alpha", "1", "--steps", "1"))
    assert values["loss"] < 0.01
    assert not is_quantized(load_checkpoint(tmp_path / "new")[0])


def test_a_checkpoint_is_trained_on_and_its_teacher_may_be_quantized(capsys, tmp_path):
    arguments = ("--teacher", "int8", "--student", "teacher", "--out", "new", "--alpha", "1", "--steps", "1")
    assert run_json(capsys, *arguments)["loss"] < 0.01  # the student is what the teacher was rounded from
    assert read_run_config(tmp_path / "new").model == TINY
    assert app.run(["eval", "new"]) == 0
    capsys.readouterr()
    assert app.run(["distill", *start("--tasks", "1"), "--out", "plain"]) == 0
    said = capsys.readouterr().out
    assert "bits per byte" in said
    assert "of reasoning problems right: level 1 " in said


def test_an_experiment_trains_teachers_and_students(monkeypatch, tmp_path, capsys):
    """A teacher; one that learns from it; one that reads only what it writes; one with a teacher for each domain."""
    monkeypatch.setattr("minimoe.experiments.scores.GRADED", 1)
    monkeypatch.setattr(students, "EXCERPTS", 2)
    monkeypatch.setattr("minimoe.distill.teacher_text.PER_FILE", 8)

    def problems_and_text(work, run, *, tasks, form):
        return Learning(mixed_data(work.corpus, work.tokenizer, run, tasks, form)[0])

    def tiny(name, learn, scores, **settings):
        return Run(name, "tiny", learn=learn, scores=scores, settings=settings)

    half = {"tasks": 0.5, "pool": 8}
    one = ["toy/teacher"]
    several = ["austen=toy/teacher", "reasoning=toy/student"]
    polish = {"teachers": one, "distill": {"on_policy_fraction": 0.5}, "start": "toy/teacher"}
    both = (solved, students.written_by_teacher)
    trials = [
        tiny("teacher", problems_and_text, (solved,), form="mixed", tasks=0.5),
        tiny("student", reasoning.study, (solved,), **polish, **half),
        tiny("reader", distillation_ways.study, both, teachers=one, form="sampled", text="sampled", **half),
        tiny("of several", distillation.study, (solved,), teachers=several, distill={"alpha": 1.0}, **half),
        tiny("specialist", specialists.specialise, (), start="toy/teacher", domains=["austen"]),
    ]
    monkeypatch.setitem(EXPERIMENTS, "toy", lambda done: trials)
    arguments = ["experiments", "run", "toy", "--work", "work", "--record", "toy.json"]
    assert app.run([*arguments, "--only", "s*"]) == 2
    assert "minimoe experiments run toy --work work" in capsys.readouterr().err
    assert app.run(arguments) == 0
    runs = json.loads((tmp_path / "toy.json").read_text())["runs"]
    assert list(runs) == [trial.name for trial in trials]
    for name in runs:
        assert set(runs[name]["tasks"]) == (set() if name == "specialist" else {"worked", "direct"})
        assert set(runs[name]["full"]["per_domain"]) == {"austen"}, "text alone, so that runs can be compared"
    assert runs["of several"]["method"]["teachers"] == several
    assert runs["reader"]["sampled_right"] == 0
    assert runs["reader"]["sampled_seconds"] > 0
    written = json.loads(
        (tmp_path / "work" / "toy" / "teacher" / "sampled" / "reasoning-t0.6-n96-000000.json").read_text()
    )
    assert [document["text"].split(":")[0] for document in written["documents"]] == ["Q"] * 8
    monkeypatch.setattr("minimoe.experiments.records.RECORDS", tmp_path)
    assert app.run(["experiments", "ship", "pupil", "--checkpoint", "work/toy/student", "--into", "shipped"]) == 0
    card = (tmp_path / "shipped" / "pupil" / "MODEL_CARD.md").read_text()
    for part in (
        "`minimoe experiments run toy`, run `student`",
        "begun from",
        "distilled from toy/teacher",
        "| worked | 0% |",
    ):
        assert part in card
    shutil.rmtree(tmp_path / "work" / "toy" / "reader" / "checkpoints")
    values = json.loads((tmp_path / "toy.json").read_text())
    again = values["runs"].pop("reader")
    (tmp_path / "toy.json").write_text(json.dumps(values))
    assert app.run(arguments) == 0
    found = json.loads((tmp_path / "toy.json").read_text())["runs"]["reader"]
    assert found["full"] == again["full"], "made again from what the teacher wrote"


@pytest.mark.parametrize("form", students.WRITTEN_FORMS)
def test_students_read_what_their_form_says_of_a_teachers_solutions(form, monkeypatch, tmp_path):
    """Four problems: solved with the true steps, solved another way, answered wrong, not answered."""
    from minimoe.data import task_documents

    work = Workplace(tmp_path)
    true = task_documents(4, seed=students.POOL_SEED)
    answer = true[1].text.splitlines()[-1]
    said = [true[0].text, f"{true[1].text.splitlines()[0]}\nSteps: 0+0=0\n{answer}\n", "A: 0\n", "Q:"]
    written = [dataclasses.replace(one, text=text) for one, text in zip(true, said, strict=True)]
    monkeypatch.setattr(students, "solutions_of", lambda work, teacher, pool: Written(written, 2.5))
    found = [document.text for document in reasoning.problems_to_read(work, ["toy/teacher"], 4, form)]
    assert found == {"sampled": said, "sampled-right": said[:2], "worked-right": [one.text for one in true[:2]]}[form]
    record = students.written_by_teacher(
        work, MoETransformer(TINY, rngs=nnx.Rngs(0)), {"teachers": ["toy/teacher"], "pool": 4}
    )
    assert record == {"sampled_right": 0.5, "sampled_same": 0.5, "sampled_seconds": 2.5}
    if form != "sampled":
        written[:2] = written[2:]
        with pytest.raises(UserError, match=r"the teacher solved none of 4 problems right; train it for longer"):
            reasoning.problems_to_read(work, ["toy/teacher"], 4, form)


def test_several_teachers_judge_their_domains_and_a_resumed_run_must_have_the_same(capsys, tmp_path, monkeypatch):
    asked = []
    real = distill_module.ask_teacher
    monkeypatch.setattr(
        distill_module, "ask_teacher", lambda model, *a, **k: asked.append(model) or real(model, *a, **k)
    )
    arguments = ("--teacher", "teacher", "--teacher", "reasoning=int8", "--student", "tiny", "--out", "new")
    values = run_json(capsys, *arguments, "--tasks", "0.5")
    assert values["teacher"] == "teacher, reasoning=int8"
    assert {is_quantized(model) for model in asked} == {False, True}
    taught = read_run_config(tmp_path / "new").method["teacher"]
    models = {name: load(tmp_path / name)[0] for name in ("teacher", "int8")}
    assert taught == {"": model_fingerprint(models["teacher"]), "reasoning": model_fingerprint(models["int8"])}
    shutil.rmtree(tmp_path / "new" / "checkpoints" / "3")
    again = run_json(capsys, *arguments, "--tasks", "0.5", "--resume")
    assert again["loss"] == values["loss"]
    assert app.run(["distill", *arguments[2:], "--teacher", "austen=teacher", "--tasks", "0.5", "--resume"]) == 2
    assert "method teacher." in capsys.readouterr().err


def test_a_folder_may_have_an_equals_sign_in_its_name(capsys, tmp_path):
    (tmp_path / "teacher").rename(tmp_path / "lr=3")
    assert run_json(capsys, "--teacher", "lr=3", "--student", "tiny", "--out", "new")["teacher"] == "lr=3"
    assert (
        run_json(capsys, "--teacher", "austen=lr=3", "--student", "tiny", "--out", "other")["teacher"] == "austen=lr=3"
    )


BAD = {
    "two for all": (["--teacher", "int8"], "two --teacher without a domain, teacher and int8"),
    "two for one": (["--teacher", "austen=int8", "--teacher", "austen=teacher"], "two --teacher for austen"),
    "teacher of no domain": (["--teacher", "poetry=int8"], "no domain of that name, but austen"),
    "teacher of problems, without any": (["--teacher", "reasoning=int8"], "come with --tasks"),
    "teachers of two tokenizers": (["--teacher", "austen=bytes"], "tokenizer byte"),
    "several and a cache": (["--teacher", "austen=int8", "--cache", "c", "--top-k", "4"], "there are 2"),
    "missing teacher": (["--teacher", "austen=nosuch"], "nosuch"),
    "foreign teacher": (["--teacher", "austen=foreign"], "foreign"),
    "teacher without tokenizer": (["--teacher", "austen=mute"], "no tokenizer"),
    "teacher with a short context": (["--teacher", "austen=short"], "context_length=64"),
    "missing student": (["--student", "nosuch"], "--student nosuch is no preset"),
    "student of another tokenizer": (["--student", "bytes"], "byte (257 ids)"),
    "dense checkpoint": (["--student", "teacher", "--dense"], "--dense"),
    "foreign out": (["--out", "foreign"], "foreign"),
    "out is a file": (["--out", "thesis.doc"], "thesis.doc"),
    "unknown loss": (["--loss", "l2"], "'l2'"),
    "temperature": (["--temperature", "0"], "temperature=0.0"),
    "a temperature no loss is finite at": (["--temperature", "1e-30"], "temperature=1e-30"),
    "more best words than words": (["--top-k", "100000"], "top_k=100000 must be in 1.."),
    "alpha": (["--alpha", "2"], "alpha=2.0"),
    "on-policy": (["--on-policy", "1.5"], "on_policy_fraction=1.5"),
    "tasks": (["--tasks", "-1"], "--tasks -1.0"),
    "negative sampled": (["--sampled", "-1"], "--sampled -1"),
    "sampled without tasks": (["--sampled", "5"], "--sampled 5 goes with --tasks"),
    "cache without k": (["--cache", "cache"], "--top-k"),
    "foreign cache": (["--cache", "foreign", "--top-k", "4"], "foreign"),
    "cache is a file": (["--cache", "thesis.doc", "--top-k", "4"], "thesis.doc"),
    "top k and own text": (["--top-k", "4", "--on-policy", "0.5"], "top_k=4"),
    "no steps": (["--steps", "0"], "steps=0"),
    "problems too long": (["--teacher", "austen=short", "--student", "short", "--tasks", "0.5"], "context_length=64"),
}


def test_a_domain_without_a_teacher_is_named(capsys, tmp_path):
    arguments = ["distill", "--teacher", "austen=teacher", "--student", "tiny", "--tasks", "0.5", "--out", "new"]
    assert app.run(arguments) == 2
    assert "no --teacher for reasoning; add --teacher reasoning=CHECKPOINT" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_exit_code_two_and_nothing_left(name, tmp_path, capsys):
    options, value = BAD[name]
    (tmp_path / "foreign").mkdir()
    for place in (tmp_path, tmp_path / "foreign"):
        (place / "thesis.doc").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    assert app.run(["distill", *start(*options)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("minimoe: ")
    assert value in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_help_has_an_example(capsys):
    assert app.run(["distill", "--help"]) == 0
    assert "Example: minimoe distill --teacher" in " ".join(capsys.readouterr().out.split())


def test_a_resume_with_another_teacher_or_recipe_is_refused_in_one_line(capsys, tmp_path):
    run_json(capsys, *start())
    capsys.readouterr()
    assert app.run(["distill", *start("--alpha", "0.5", "--resume")]) == 2
    said = capsys.readouterr().err
    assert "method recipe.alpha=0.5" in said
    assert said.count("\n") == 1, said
    shutil.rmtree(tmp_path / "teacher")
    save(MoETransformer(TINY, rngs=nnx.Rngs(2)), tmp_path / "teacher", load_tokenizer("bpe2048"))
    assert app.run(["distill", *start("--resume")]) == 2
    said = capsys.readouterr().err
    assert "method teacher='" in said
    assert said.count("\n") == 1, said
