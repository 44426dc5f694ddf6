"""One step, the loop, checkpoints and evaluation, on a model of 1,000 weights and a few lines of text."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer, UserError, files
from minimoe.data import ByteTokenizer, Document, load_tokenizer, training_data
from minimoe.moe import RouterBias
from minimoe.training import (
    Method,
    Recipe,
    RunConfig,
    evaluate,
    init_training,
    learning_rate,
    lm_loss,
    load_checkpoint,
    read_metrics,
    train,
    train_step,
)
from minimoe.training.checkpoint import CheckpointFolder
from minimoe.training.run_folder import prepare_folder, read_run_config, write_run_config

TOKENIZER = ByteTokenizer()
# The dense dispatch compiles fastest; the test that learns takes the default one.
MOE = MoEConfig(
    d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1, score="sigmoid", dispatch="dense"
)  # fmt: skip
MODEL = ModelConfig(
    vocab_size=257, d_model=8, num_layers=2,
    attention=GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=4),
    context_length=16, moe=MOE,
    dropout=0.1,
)  # fmt: skip
RECIPE = Recipe(
    steps=6, batch_size=3, learning_rate=3e-2, warmup_steps=2, log_every=2, checkpoint_every=2, balance_weight=0.01,
    z_weight=0.001, router_bias_rate=0.01,
)  # fmt: skip
TRAINING = [Document("abc", "train", "1", "abcdefgh" * 12), Document("num", "train", "2", "0123456789" * 9)]
VALIDATION = [Document("abc", "val", "3", "abcdefghabcdefghabcdé"), Document("num", "val", "4", "0123456789")]
DATA = training_data(TRAINING, TOKENIZER)
TIMES = ("seconds", "tokens_per_second")


def run_config(**changes) -> RunConfig:
    recipe = Recipe(**RECIPE.to_dict() | changes)
    return RunConfig(MODEL, recipe, {"name": "test"}, "byte")


def go(out: Path | None, run: RunConfig | None = None, data=DATA, **kwargs):
    return train(run or run_config(), data, VALIDATION, TOKENIZER, out=out, **kwargs)


def batch(step: int) -> list[jax.Array]:
    made = DATA.batch(0, step, RECIPE.batch_size, MODEL.context_length)
    return [jnp.asarray(array) for array in (made.tokens, made.targets, made.where)]


def flat(*nodes) -> dict[str, np.ndarray]:
    """Copies of all variables: a step donates the buffers it is given."""
    found = {}
    for i, node in enumerate(nodes):
        for path, variable in nnx.to_flat_state(nnx.state(node)):
            value = variable[...]
            value = jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value
            found["/".join(map(str, (i, *path)))] = np.array(value)
    return found


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


def steps_of_training(count: int) -> dict[str, list[float]]:
    """Losses, and how large each router's first moment is: what its gradients left behind."""
    model, optimizer = init_training(run_config())
    losses = []
    for step in range(count):
        metrics = train_step(model, optimizer, *batch(step), jax.random.key(step), recipe=RECIPE)
        assert bool(metrics.ok)
        losses.append(float(metrics.loss))
    after = flat(model, optimizer)
    moments = [float(np.abs(v).max()) for k, v in after.items() if k.endswith("mu/layers/0/ffn/router/kernel")]
    moments += [float(np.abs(v).max()) for k, v in after.items() if k.endswith("mu/layers/1/ffn/router/kernel")]
    biases = [float(np.abs(v).max()) for k, v in after.items() if k.endswith("ffn/router/bias") and k[0] == "0"]
    return {"losses": losses, "router_moments": moments, "biases": biases}


# One step


def test_both_nnx_modes_take_the_same_steps():
    """Graph mode is today's default, tree mode tomorrow's."""
    code = "import conftest, json, test_training; print(json.dumps(test_training.steps_of_training(3)))"
    modes = {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    command = [sys.executable, "-W", "error::DeprecationWarning:flax", "-c", code]
    done = subprocess.run(
        command, env=os.environ | modes | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    here, there = steps_of_training(3), json.loads(done.stdout.splitlines()[-1])
    assert there["losses"] == here["losses"]
    assert len(here["router_moments"]) == len(there["router_moments"]) == 2
    assert all(moment > 0 for moment in here["router_moments"] + there["router_moments"])
    assert all(bias > 0 for bias in here["biases"] + there["biases"])


def test_a_step_that_is_not_finite_changes_no_bit():
    model, optimizer = init_training(run_config())
    train_step(model, optimizer, *batch(0), jax.random.key(0), recipe=RECIPE)
    model.layers[1].ffn.experts.down_proj[...] = model.layers[1].ffn.experts.down_proj[...].at[:, 0, 0].set(jnp.nan)
    before = flat(model, optimizer)
    metrics = train_step(model, optimizer, *batch(1), jax.random.key(1), recipe=RECIPE)
    assert not bool(metrics.ok)
    assert_same_bits(before, flat(model, optimizer))


def test_a_step_compiles_once_and_learns(monkeypatch):
    """Forty steps on one batch: traced once, the loss falls to a fraction, experts stay in use."""
    traces = []

    def counted(*args):
        traces.append(1)
        return lm_loss(*args)

    monkeypatch.setattr("minimoe.training.step.lm_loss", counted)
    recipe = Recipe(**RECIPE.to_dict() | {"steps": 40, "learning_rate": 5e-2})
    model, optimizer = init_training(
        RunConfig(MODEL.replace(dropout=0.0).replace_moe(dispatch="dropless"), recipe, {}, "byte")
    )
    losses = []
    for _ in range(40):
        metrics = train_step(model, optimizer, *batch(0), jax.random.key(0), recipe=recipe)
        losses.append(float(metrics.loss))
    assert len(traces) == 1
    assert abs(losses[0] - math.log(257)) < 0.3, "a new model knows nothing"
    assert losses[-1] < losses[0] / 3
    assert metrics.load.shape == (2, 4)
    assert [float(row.sum()) for row in metrics.load] == [RECIPE.batch_size * 16 * 2] * 2
    biases = nnx.to_flat_state(nnx.state(model, RouterBias))
    assert all(abs(float(bias[...].mean())) < 1e-6 < float(jnp.abs(bias[...]).max()) for _, bias in biases)


def test_lm_loss_is_a_mean_over_real_targets():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    targets, where = np.array([[0, 1, 2], [3, 4, 0]]), np.array([[1, 1, 0], [0, 0, 1]], bool)
    want = [
        math.log(np.exp(logits[b, t].astype(np.float64)).sum()) - logits[b, t, targets[b, t]]
        for b in range(2)
        for t in range(3)
        if where[b, t]
    ]
    found = lm_loss(jnp.asarray(logits), jnp.asarray(targets, jnp.int32), jnp.asarray(where))
    np.testing.assert_allclose(found, np.mean(want), rtol=1e-5)
    assert float(lm_loss(jnp.asarray(logits), jnp.asarray(targets, jnp.int32), jnp.zeros((2, 3), bool))) == 0.0


def test_learning_rate_rises_to_the_peak_and_falls_to_the_end():
    recipe = Recipe(steps=100, warmup_steps=10, learning_rate=1.0, final_fraction=0.1)
    rates = [float(learning_rate(recipe)(step)) for step in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.1)
    assert 0 < rates[0] <= 0.101
    assert float(learning_rate(Recipe(steps=1, warmup_steps=10))(0)) > 0


# The loop


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of six steps, its folder, and its last checkpoint."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    result = go(out)
    return out, result, saved_state(out)


def saved_state(out: Path) -> dict[str, np.ndarray]:
    """Model and optimizer from the last checkpoint."""
    folder = CheckpointFolder(out)
    model, optimizer = init_training(run_config(seed=99))
    folder.restore(folder.steps()[-1], model, optimizer)
    folder.close()
    return flat(model, optimizer)


def without_times(records):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def test_a_run_leaves_what_it_promises(unbroken):
    out, result, state = unbroken
    assert (result.step, result.interrupted) == (6, False)
    assert CheckpointFolder(out).steps() == [4, 6]
    assert [(r["kind"], r["step"]) for r in result.records] == [("train", 2), ("train", 4), ("train", 6), ("eval", 6)]
    assert read_metrics(out) == result.records
    assert result.records[0]["tokens"] == 2 * 3 * 16
    assert all(len(result.records[0][name]) == 2 for name in ("max_violation", "load_cv", "drop_rate", "dead_experts"))
    assert result.records[-1]["bits_per_byte"] == result.evaluation.bits_per_byte
    assert_same_bits({k: v for k, v in state.items() if k[0] == "0"}, flat(result.model))


def test_load_checkpoint_gives_the_trained_model(unbroken):
    out, result, _ = unbroken
    model, tokenizer, run = load_checkpoint(out)
    assert_same_bits(flat(model), flat(result.model))
    assert (tokenizer.name, run.model, run.recipe) == ("byte", MODEL, RECIPE)


class Crash(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_bits(unbroken, tmp_path):
    """Killed after step 5: checkpoint 4 is on disk, and metrics that must be cut back to it."""

    def die(step, metrics):
        if step == 5:
            raise Crash

    with pytest.raises(Crash):
        go(tmp_path / "run", on_step=die)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5}\n{"kind": "tr')
    for step in (3, 6):  # saves in which a run was killed
        half = tmp_path / "run" / "checkpoints" / f"{step}.orbax-checkpoint-tmp" / "default.orbax-checkpoint-tmp"
        half.mkdir(parents=True)
        (half / "_METADATA").write_text("half")
    seen = []
    result = go(tmp_path / "run", resume=True, on_step=lambda step, metrics: seen.append(step))
    assert seen == [5, 6]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["4", "6"]
    assert_same_bits(saved_state(tmp_path / "run"), unbroken[2])
    assert without_times(result.records) == without_times(unbroken[1].records)
    assert without_times(read_metrics(tmp_path / "run")) == without_times(unbroken[1].records)


@pytest.mark.parametrize("written", [[], ["config.json"], ["config.json", "tokenizer.json"]])
def test_a_run_killed_while_its_folder_is_begun_can_be_continued(tmp_path, monkeypatch, written):
    """The process ends when it has renamed as many files to their names as ``written`` has."""
    replace, done = files.replace, []

    def renamed(source, target):
        if len(done) == len(written):
            raise Crash
        done.append(target.name)
        replace(source, target)

    out, tokenizer = tmp_path / "run", load_tokenizer("bpe2048")
    model = MODEL.replace(vocab_size=tokenizer.vocab_size)
    run = RunConfig(model, Recipe(**RECIPE.to_dict() | {"steps": 1}), {"name": "test"}, tokenizer.name)
    arguments = (run, training_data(TRAINING, tokenizer), [], tokenizer)
    monkeypatch.setattr(files, "replace", renamed)
    monkeypatch.setattr("minimoe.training.loop._Session", lambda *arguments: files.replace(Path(), Path("end")))
    with pytest.raises(Crash):
        train(*arguments, out=out)
    monkeypatch.undo()
    assert sorted(path.name for path in out.iterdir()) == written == done
    assert train(*arguments, out=out, resume=True).step == 1
    assert load_checkpoint(out)[1].fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("name", [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)])
def test_what_stops_a_run_saves_it_and_it_resumes_to_the_same_bits(unbroken, tmp_path, name):
    """Ctrl-C, a polite kill, a closed terminal."""

    def interrupt(step, metrics):
        if step == 3:
            os.kill(os.getpid(), getattr(signal, name))

    earlier = signal.getsignal(signal.SIGINT)
    before = signal.signal(getattr(signal, name), signal.default_int_handler)  # nohup starts the tests deaf to it
    try:
        result = go(tmp_path / "run", on_step=interrupt)
    finally:
        signal.signal(getattr(signal, name), before)
    assert (result.step, result.interrupted, result.evaluation) == (3, True, None)
    assert CheckpointFolder(tmp_path / "run").steps()[-1] == 3
    assert signal.getsignal(signal.SIGINT) is earlier
    result = go(tmp_path / "run", resume=True)
    assert (result.step, result.interrupted) == (6, False)
    assert_same_bits(saved_state(tmp_path / "run"), unbroken[2])
    assert without_times(result.records) == without_times(unbroken[1].records)


def test_resuming_a_finished_run_evaluates_and_trains_no_more(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    result = go(tmp_path / "run", resume=True, on_step=lambda step, metrics: pytest.fail("trained"))
    assert (result.step, result.interrupted) == (6, False)
    assert result.evaluation.bits_per_byte == unbroken[1].evaluation.bits_per_byte
    assert result.records == unbroken[1].records  # no second line for what was known


def test_a_run_with_muon_resumes_to_the_same_bits_and_no_other_optimizer_continues_it(tmp_path):
    run = run_config(optimizer="muon", steps=4)
    whole = go(None, run)

    def die(step, metrics):
        if step == 3:
            raise Crash

    with pytest.raises(Crash):
        go(tmp_path / "run", run, on_step=die)
    assert read_run_config(tmp_path / "run").recipe.optimizer == "muon"
    with pytest.raises(UserError, match="recipe optimizer"):
        go(tmp_path / "run", run_config(steps=4), resume=True)
    assert_same_bits(flat(go(tmp_path / "run", run, resume=True).model), flat(whole.model))


def test_resume_without_a_checkpoint_starts_at_the_beginning(unbroken, tmp_path):
    result = go(tmp_path / "run", resume=True)
    assert without_times(result.records) == without_times(unbroken[1].records)


def test_without_a_folder_everything_is_in_memory(unbroken):
    assert without_times(go(None).records) == without_times(unbroken[1].records)


def test_divergence_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    run = run_config(learning_rate=1e38)
    with pytest.raises(UserError, match=r"step \d is not finite \(loss=.*Lower --learning-rate") as caught:
        go(tmp_path / "run", run)
    failed = int(str(caught.value).split("step ")[1].split()[0])
    assert f"state after step {failed - 1} is kept in {tmp_path / 'run'}" in str(caught.value)
    assert CheckpointFolder(tmp_path / "run").steps()[-1] == failed - 1


def test_what_divergence_saves_is_finite(tmp_path):
    run = run_config(learning_rate=1e38)
    with pytest.raises(UserError, match="is not finite"):
        go(tmp_path / "run", run)
    assert [name for name, value in saved_state(tmp_path / "run").items() if not np.isfinite(value).all()] == []


def test_a_tokenizer_with_more_ids_is_refused():
    small = RunConfig(MODEL.replace(vocab_size=256), RECIPE, {}, "byte")
    with pytest.raises(UserError, match="'byte' has 257 ids but the model knows 256; raise vocab_size to 257"):
        go(None, small)
    model = MoETransformer(small.model, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="257 ids but the model knows 256"):
        evaluate(model, VALIDATION, TOKENIZER)


# Who may continue a run


def test_training_alone_leaves_a_folder_that_says_what_it_is(unbroken):
    out, result, _ = unbroken
    run = read_run_config(out)
    assert run == result.run
    assert run.method == {"name": "language-model"}
    assert set(run.fingerprints) == {"data", "tokenizer"}
    assert set(run.versions) == {"minimoe", "jax", "flax", "optax"}


OTHERS = {
    "recipe": ({"run": run_config(learning_rate=0.5)}, "recipe learning_rate=0.5, but .* recipe learning_rate=0.03"),
    "model": (
        {"run": RunConfig(MODEL.replace_moe(top_k=1), RECIPE, {"name": "test"}, "byte")},
        "model moe.*top_k=1, but .* was started with model moe.*top_k=2",
    ),
    "data": ({"run": RunConfig(MODEL, RECIPE, {"name": "other"}, "byte")}, "data name='other', but .* name='test'"),
    "tokens": ({"data": training_data(TRAINING[:1], TOKENIZER)}, "fingerprints data='"),
    "weights": ({"model": MoETransformer(MODEL, rngs=nnx.Rngs(1))}, "fingerprints start='.*, but .* start=None"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_does_not_resume(name, unbroken):
    arguments, message = OTHERS[name]
    before = (unbroken[0] / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=message + ".*; use the same or name another folder"):
        go(unbroken[0], resume=True, **arguments)
    assert (unbroken[0] / "metrics.jsonl").read_bytes() == before


def test_how_often_a_run_is_looked_at_may_change(unbroken, tmp_path):
    out = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    shutil.rmtree(out / "checkpoints" / "6")
    assert go(out, run_config(log_every=1, checkpoint_every=1, eval_every=3), resume=True).step == 6


def test_a_run_from_given_weights_resumes_with_them_or_without(tmp_path):
    begin, other = (MoETransformer(MODEL, rngs=nnx.Rngs(seed)) for seed in (1, 2))
    want = go(tmp_path / "run", model=begin)
    for model in (begin, None):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
        assert_same_bits(flat(go(tmp_path / "run", resume=True, model=model).model), flat(want.model))
    with pytest.raises(UserError, match="fingerprints start='"):
        go(tmp_path / "run", resume=True, model=other)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="fingerprints start=None, but"):
        go(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="the run has num_layers=2, the model to begin from num_layers=1"):
        go(None, model=MoETransformer(MODEL.replace(num_layers=1), rngs=nnx.Rngs(0)))


def test_a_folder_with_a_run_is_not_begun_again(unbroken, tmp_path):
    with pytest.raises(UserError, match="already holds a run; resume it"):
        go(unbroken[0])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match="holds something that is not a training run"):
        go(foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.doc"]


def test_a_method_that_does_not_fit_leaves_nothing_behind(tmp_path):
    class Refusing(Method):
        def changes(self, *args):
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        go(tmp_path / "run", method=Refusing())
    assert not (tmp_path / "run").exists()


def test_folders_of_earlier_versions_load_and_resume(unbroken, tmp_path):
    """They know neither method nor fingerprints, no limit and no choice of optimiser.

    Distillation was described within the data.
    """
    out = Path(shutil.copytree(unbroken[0], tmp_path / "run"))
    shutil.rmtree(out / "checkpoints" / "6")
    values = json.loads((out / "config.json").read_text())
    del values["method"], values["fingerprints"], values["recipe"]["optimizer"]
    del values["model"]["swiglu_limit"], values["model"]["moe"]["swiglu_limit"]
    (out / "config.json").write_text(json.dumps(values))
    assert_same_bits(flat(go(out, resume=True).model), flat(unbroken[1].model))
    assert_same_bits(flat(load_checkpoint(out)[0]), flat(unbroken[1].model))
    values["data"] |= {"distillation": {"alpha": 0.9}, "teacher": "a" * 64, "student": "b" * 64}
    (out / "config.json").write_text(json.dumps(values))
    run = read_run_config(out)
    assert run.data == {"name": "test"}
    assert run.method == {"name": "distillation", "recipe": {"alpha": 0.9}, "teacher": "a" * 64}
    assert run.fingerprints == {"start": "b" * 64}
    with pytest.raises(UserError, match=r"method name='language-model', but .*='distillation'"):
        go(out, resume=True)


# Checkpoints that are not as they should be


@pytest.fixture
def copy(unbroken, tmp_path) -> Path:
    return Path(shutil.copytree(unbroken[0], tmp_path / "copy"))


def test_damaged_checkpoint_names_the_folder(copy):
    for file in (copy / "checkpoints" / "6").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/6 cannot be read .*; delete the folder") as caught:
        load_checkpoint(copy)
    assert "\n" not in str(caught.value)
    shutil.rmtree(copy / "checkpoints" / "6")  # the repair that the message names
    assert go(copy, resume=True).step == 6


def test_missing_foreign_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; train one with `minimoe train"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(UserError, match=r"is not a training folder \(no config.json\)"):
        load_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"holiday\.txt is a file; name a training folder"):
        load_checkpoint(tmp_path / "holiday.txt")
    with pytest.raises(UserError, match="holds something that is not a training run; name a folder"):
        prepare_folder(tmp_path)
    with pytest.raises(UserError, match=r"holiday.txt is a file; name a folder"):
        prepare_folder(tmp_path / "holiday.txt")
    prepare_folder(tmp_path / "new")
    write_run_config(tmp_path / "new", run_config(), TOKENIZER)
    with pytest.raises(UserError, match="holds no finished checkpoint yet; continue it with"):
        load_checkpoint(tmp_path / "new")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"below lies below .*file, which is a file; name another folder"):
        prepare_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", "is broken .*; restore the file or train again"),
        ("[]", "is broken"),
        ("{}", "is broken .*format"),
        ('{"format": "other"}', "format 'other' is not known; this version reads 'minimoe-training-1'"),
        (b"\xff\xfe", "is broken"),
        pytest.param("[" * 100_000, "is broken", id="deep"),
    ],
    ids=str,
)
def test_broken_config_file(content, parts, copy):
    content = content.encode() if isinstance(content, str) else content
    (copy / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=parts) as caught:
        load_checkpoint(copy)
    assert str(copy / "config.json") in str(caught.value)


def test_config_file_with_other_keys(copy):
    values = json.loads((copy / "config.json").read_text())
    values["model"]["width"] = values["model"].pop("d_model")
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"unknown keys \['width'\], missing keys \['d_model'\]"):
        read_run_config(copy)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_layers": 1}, r"num_layers=1, but checkpoint .*checkpoints/6 holds 2"),
        ({"d_ff": 7, "moe": None}, r"checkpoints/6 is of another model: missing layers/.*; unexpected layers/"),
        (
            {"vocab_size": 300},
            r"checkpoints/6 is of another model.*wrong embed/embedding is \(\d+, \d+\) instead of \(300, ",
        ),
    ],
    ids=str,
)
def test_checkpoint_of_another_model_lists_names(changes, parts, copy):
    values = json.loads((copy / "config.json").read_text())
    values["model"] |= changes
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=parts):
        load_checkpoint(copy)


# Evaluation


@pytest.fixture(scope="module")
def model() -> MoETransformer:
    return MoETransformer(MODEL.replace(dropout=0.0), rngs=nnx.Rngs(1))


def bits_by_hand(model, text: str) -> float:
    """Token by token: windows of 16, each but the first scoring its second half."""
    ids = [256, *text.encode()]
    logits_of = nnx.jit(lambda model, tokens: model(tokens)[0][0])
    bits = 0.0
    for target in range(1, len(ids)):
        window = 0 if target <= 16 else 8 * math.ceil((target - 16) / 8)
        context = ids[window : window + 16]
        padded = jnp.asarray([context + [0] * (16 - len(context))], jnp.int32)
        row = np.asarray(logits_of(model, padded), np.float64)[target - 1 - window]
        bits += (math.log(np.exp(row).sum()) - row[ids[target]]) / math.log(2)
    return bits


def test_bits_per_byte_match_the_loop(model):
    found = evaluate(model, VALIDATION, TOKENIZER)
    bits = {document.domain: bits_by_hand(model, document.text) for document in VALIDATION}
    sizes = {document.domain: len(document.text.encode()) for document in VALIDATION}
    for name in bits:
        assert found.per_domain[name] == pytest.approx(bits[name] / sizes[name], rel=1e-5)
    assert found.bits_per_byte == pytest.approx(np.mean([bits[n] / sizes[n] for n in bits]), rel=1e-5)
    assert found.pooled_bits_per_byte == pytest.approx(sum(bits.values()) / sum(sizes.values()), rel=1e-5)
    assert found.num_bytes == found.num_tokens == sum(sizes.values())
    assert found.load.shape == (2, 2, 4)
    np.testing.assert_array_equal(found.load.sum(axis=-1), [[2 * size] * 2 for size in sizes.values()])
    assert "load" not in found.to_record()
    json.dumps(found.to_record())


def test_a_model_that_knows_nothing_spends_log2_v_a_token():
    untied = MoETransformer(MODEL.replace(tie_embeddings=False, dropout=0.0), rngs=nnx.Rngs(0))
    untied.head.kernel[...] = jnp.zeros_like(untied.head.kernel[...])
    found = evaluate(untied, VALIDATION, TOKENIZER)
    assert found.per_domain == pytest.approx(dict.fromkeys(("abc", "num"), math.log2(257)), rel=1e-6)


def test_batching_and_padding_change_nothing(model, monkeypatch):
    """Three windows in batches of two: the last is padded."""
    want, calls = evaluate(model, VALIDATION, TOKENIZER), []
    monkeypatch.setattr(sys.modules["minimoe.training.evaluate"], "TOKENS_PER_BATCH", 2 * 16)
    found = evaluate(model, VALIDATION, TOKENIZER, progress=lambda done, count: calls.append((done, count)))
    assert calls == [(2, 3), (3, 3)]
    assert found.per_domain == pytest.approx(want.per_domain, rel=1e-6)
    np.testing.assert_array_equal(found.load, want.load)


def test_a_context_of_any_length_is_evaluated_in_windows_that_fit_in_memory():
    """Many published configs name 131,072 positions; attention over that many would take 180 GB here."""
    config = ModelConfig(257, 16, 1, GroupedQueryConfig(2, 1, 8), d_ff=16, context_length=131_072)
    long, short = (MoETransformer(config.replace(context_length=n), rngs=nnx.Rngs(0)) for n in (131_072, 4096))
    text = [Document("a", "val", "1", "So it goes. " * 400)]
    assert evaluate(long, text, ByteTokenizer()).to_record() == evaluate(short, text, ByteTokenizer()).to_record()


def test_nothing_to_evaluate_is_refused(model):
    for nothing in ([], [Document("abc", "val", "1", "")]):
        with pytest.raises(UserError, match="text to evaluate"):
            evaluate(model, nothing, TOKENIZER)


def test_an_empty_document_does_not_shift_the_domains(model):
    empty_first = [Document("num", "val", "0", ""), *VALIDATION]
    assert evaluate(model, empty_first, TOKENIZER).per_domain == evaluate(model, VALIDATION, TOKENIZER).per_domain


# Where a run lies, and disks.


@pytest.mark.parametrize("name", ["[v1]", "a*b?", "with space", "ünïcode"])
def test_any_path_holds_a_run(unbroken, tmp_path, name):
    """The checkpoint library takes some characters for a pattern of names."""
    out = tmp_path / name
    assert go(out).step == 6
    assert CheckpointFolder(out).steps() == [4, 6]
    assert_same_bits(saved_state(out), unbroken[2])
    assert [path.name for path in (out / "checkpoints").iterdir() if not path.name.isdigit()] == []
    assert load_checkpoint(out)[2].recipe == run_config().recipe


def test_a_path_that_checkpoints_cannot_have_is_refused_before_the_first_step(tmp_path):
    steps = []
    with pytest.raises(UserError, match="is not UTF-8"):
        go(tmp_path / "caf\udce9", on_step=lambda step, metrics: steps.append(step))
    assert steps == []


def test_a_checkpoint_counts_once_it_was_read_back(tmp_path, monkeypatch):
    go(tmp_path, run_config(steps=2))
    monkeypatch.setattr(CheckpointFolder, "_read_back", lambda *rest: (_ for _ in ()).throw(UserError("not there")))
    with pytest.raises(UserError, match="not there"):
        CheckpointFolder(tmp_path).save(3, *init_training(run_config()))
    monkeypatch.undo()
    folder = CheckpointFolder(tmp_path)
    model, optimizer = init_training(run_config())
    with pytest.raises(UserError, match=r"step 2 .* is not what was saved \(model: \d+ of 1 arrays\)"):
        folder._read_back(folder.path, 2, {"model": {"embed": jnp.zeros(1)}})
    assert folder.steps() == [3], "what cannot be relied on is gone"
    folder.restore(3, model, optimizer)


def test_a_config_with_absurd_sizes_is_refused_before_a_model_is_built(unbroken, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(unbroken[0], copy)
    config = json.loads((copy / "config.json").read_text())
    for key, value, words in (
        ("num_layers", 10**9, "num_layers=1000000000, but"),
        ("vocab_size", 10**9, "wrong embed/embedding is"),
    ):
        edited = config | {"model": config["model"] | {key: value}}
        (copy / "config.json").write_text(json.dumps(edited))
        with pytest.raises(UserError, match=words):
            load_checkpoint(copy)
