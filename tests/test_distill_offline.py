"""Learning from a teacher on text: what a step lowers, where the answers come from, and what stays as in training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import softmax

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, MoETransformer, UserError
from minimoe.data import ByteTokenizer, Document, training_data
from minimoe.distill import (
    Distillation,
    DistillObjective,
    DistillRecipe,
    Targets,
    cache_teacher,
    distill,
    load_cache,
    sample_documents,
    top_k_targets,
)
from minimoe.model import ModelOutput
from minimoe.quant import QuantizationAware, quantize_model
from minimoe.training import Method, Recipe, RunConfig, StepChanges, init_training, train, train_step

TOKENIZER = ByteTokenizer()
MOE = MoEConfig(d_model=8, d_expert=6, num_experts=4, top_k=2, num_shared_experts=1, score="sigmoid", dispatch="dense")
SPARSE = ModelConfig(
    vocab_size=257,
    d_model=8,
    num_layers=1,
    attention=GroupedQueryConfig(num_heads=2, num_kv_heads=1, head_dim=4),
    context_length=12,
    moe=MOE,
)
DENSE = SPARSE.dense_equivalent()
SMALLER = SPARSE.replace_moe(num_experts=2, top_k=1)
RECIPE = Recipe(steps=4, batch_size=3, learning_rate=1e-2, warmup_steps=1, log_every=1, checkpoint_every=2)
TEXT = [Document("abc", "train", "1", "abcdefgh" * 12), Document("num", "train", "2", "0123456789" * 9)]
VALIDATION = [Document("abc", "val", "3", "abcdefghab")]
DATA = training_data(TEXT, TOKENIZER)
KD = DistillRecipe(alpha=0.5)


def run_config(model=SPARSE, **changes) -> RunConfig:
    return RunConfig(model, dataclasses.replace(RECIPE, **changes), {"name": "test"}, "byte")


forward = nnx.jit(lambda model, tokens: model(tokens)[0])


def make(config: ModelConfig, seed: int, scale: int = 2) -> MoETransformer:
    """A model whose logits are far enough apart to differ from another's."""
    model = MoETransformer(config, rngs=nnx.Rngs(seed))
    nnx.update(model, jax.tree.map(lambda p: p * scale, nnx.state(model, nnx.Param)))
    return model


@pytest.fixture(scope="module")
def teacher() -> MoETransformer:
    return make(SPARSE, 5)


def learn(teacher, recipe=KD, run=None, **kwargs):
    return distill(run or run_config(), recipe, teacher, DATA, VALIDATION, TOKENIZER, **kwargs)


def changes_of(teacher, recipe=KD, run=None, **settings) -> StepChanges:
    """What a step does differently; the model itself is not looked at."""
    run = run or run_config()
    student = nnx.eval_shape(lambda: MoETransformer(run.model, rngs=nnx.Rngs(0)))
    return Distillation(recipe, teacher, **settings).changes(run, student, DATA, TOKENIZER)


def losses(result) -> list[float]:
    return [record["loss"] for record in result.records if record["kind"] == "train"]


def arrays(model) -> dict[str, np.ndarray]:
    return {"/".join(map(str, path)): np.array(v[...]) for path, v in nnx.to_flat_state(nnx.state(model))}


def assert_same_bits(a, b) -> None:
    a, b = arrays(a), arrays(b)
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


# What a step lowers

RNG = np.random.default_rng(0)
LOGITS, TEACHER_LOGITS = (RNG.normal(size=(2, 3, 5)).astype(np.float32) for _ in range(2))
LABELS = RNG.integers(5, size=(2, 3)).astype(np.int32)
WHERE = np.array([[1, 1, 0], [0, 1, 1]], bool)
ROWS = np.array([3.0, 1.0], np.float32)


def by_hand(name: str, temperature: float, top_k: int | None) -> tuple[float, float]:
    """Cross-entropy, and the weighted mean of a divergence, position by position in float64."""
    entropies, total, mass = [], 0.0, 0.0
    for b, t in zip(*np.nonzero(WHERE), strict=True):
        entropies.append(-np.log(softmax(LOGITS[b, t])[LABELS[b, t]]))
        q, p = (softmax(x[b, t].astype(np.float64) / temperature) for x in (LOGITS, TEACHER_LOGITS))
        if top_k is not None:
            best = sorted(range(5), key=lambda v, p=p: -p[v])[:top_k]
            q, p = (np.append(x[best], 1 - x[best].sum()) for x in (q, p))
        m = (p + q) / 2
        terms = {
            "forward_kl": p * np.log(p / q),
            "reverse_kl": q * np.log(q / p),
            "jsd": (p * np.log(p / m) + q * np.log(q / m)) / 2,
            "hinton": temperature**2 * p * np.log(p / q),
        }
        total, mass = total + ROWS[b] * terms[name].sum(), mass + ROWS[b]
    return float(np.mean(entropies)), total / mass


def output_of(logits) -> ModelOutput:
    return ModelOutput(jnp.asarray(logits), jnp.zeros((*logits.shape[:2], 1)), ())


@pytest.mark.parametrize(
    ("name", "temperature", "alpha", "top_k"),
    [
        ("forward_kl", 1.0, 0.9, None),
        ("reverse_kl", 1.5, 1.0, None),
        ("jsd", 1.0, 0.25, None),
        ("hinton", 2.0, 0.5, None),
        ("hinton", 2.0, 0.5, 2),
        ("forward_kl", 1.0, 0.0, None),
    ],
)
def test_objective_is_the_mixture_by_hand(name, temperature, alpha, top_k):
    recipe = DistillRecipe(name, temperature, alpha, top_k)
    answers = jnp.asarray(TEACHER_LOGITS)
    if top_k is not None:
        answers = tuple(jax.tree.leaves(top_k_targets(answers, top_k, temperature)))
    extra = Targets(answers, jnp.asarray(ROWS), jnp.array(False), jnp.asarray(WHERE))
    found = DistillObjective(recipe)(
        ModelOutput(jnp.asarray(LOGITS), jnp.zeros((*LOGITS.shape[:2], 1)), ()),
        jnp.asarray(LABELS),
        jnp.asarray(WHERE),
        extra,
    )
    hard, soft = by_hand(name, temperature, top_k)
    np.testing.assert_allclose(found, (1 - alpha) * hard + alpha * soft, rtol=1e-5)


def test_nothing_is_lost_where_nothing_is_real():
    nowhere = jnp.zeros((2, 3), bool)
    extra = Targets(jnp.asarray(TEACHER_LOGITS), jnp.asarray(ROWS), jnp.array(False), nowhere)
    found = DistillObjective(KD)(
        ModelOutput(jnp.asarray(LOGITS), jnp.zeros((*LOGITS.shape[:2], 1)), ()), jnp.asarray(LABELS), nowhere, extra
    )
    assert float(found) == 0.0


def test_equal_recipes_share_a_compiled_step():
    assert DistillObjective(DistillRecipe()) == DistillObjective(DistillRecipe())
    assert hash(DistillObjective(DistillRecipe())) == hash(DistillObjective(DistillRecipe()))
    assert DistillRecipe.from_dict(KD.to_dict()) == KD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"divergence": "wasserstein"}, "divergence='wasserstein' is not known; choose one of forward_kl"),
        ({"temperature": 0}, r"temperature=0 must be a number in \[0.001, 1000"),
        ({"alpha": 1.5}, r"alpha=1.5 must be a number in \[0, 1\]"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"top_k": 0}, "top_k=0 must be a whole number of at least 1"),
        ({"top_k": 4, "divergence": "jsd"}, "top_k=4 goes with forward_kl or hinton, not jsd"),
        ({"top_k": 4, "on_policy_fraction": 0.5}, "top_k=4 goes not with on-policy steps"),
        ({"on_policy_fraction": -0.1}, "on_policy_fraction=-0.1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_impossible_recipes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        DistillRecipe(**changes)


# Training with it


def test_a_copy_has_nothing_to_learn_from_its_teacher():
    run = run_config(router_bias_rate=0.0)
    model, optimizer = init_training(run)
    recipe = DistillRecipe(alpha=1.0)
    changes = changes_of(nnx.clone(model), recipe, run)
    batch = DATA.batch(0, 0, RECIPE.batch_size, 12)
    parts = [jnp.asarray(array) for array in (batch.tokens, batch.targets, batch.where)]
    extra = changes.extra_for(0, batch)
    metrics = train_step(
        model, optimizer, *parts, jax.random.key(0), recipe=run.recipe, objective=changes.objective, extra=extra
    )
    assert abs(float(metrics.loss)) < 1e-7
    assert float(metrics.grad_norm) < 1e-6


def test_alpha_zero_is_plain_training_bit_for_bit(teacher):
    plain = train(run_config(), DATA, VALIDATION, TOKENIZER)
    recipe = DistillRecipe(alpha=0.0)
    assert changes_of(teacher, recipe) == StepChanges()

    class Ignored(Method):
        """The teacher is asked, and its answer has no weight."""

        def changes(self, *args) -> StepChanges:
            return StepChanges(DistillObjective(recipe), extra_for=changes_of(teacher).extra_for)

    ignored = train(run_config(), DATA, VALIDATION, TOKENIZER, method=Ignored())
    for result in (learn(teacher, recipe), ignored):
        assert_same_bits(result.model, plain.model)
        assert losses(result) == losses(plain)


@pytest.fixture(scope="module")
def live(teacher):
    """An unbroken run with the teacher beside it."""
    return learn(teacher)


def test_the_teacher_changes_what_is_learned(live):
    plain = train(run_config(), DATA, VALIDATION, TOKENIZER)
    assert losses(live) != losses(plain)
    assert live.step == 4


class Crash(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_bits(live, teacher, tmp_path):
    def die(step, metrics):
        if step == 3:
            raise Crash

    with pytest.raises(Crash):
        learn(teacher, out=tmp_path / "run", on_step=die)
    seen = []
    result = learn(teacher, out=tmp_path / "run", resume=True, on_step=lambda step, metrics: seen.append(step))
    assert seen == [3, 4]
    assert_same_bits(result.model, live.model)
    assert losses(result) == losses(live)


def test_a_resumed_run_must_have_the_same_teacher_and_settings(teacher, tmp_path):
    out = tmp_path / "run"
    learn(teacher, run=run_config(steps=1), out=out)
    short = {"run": run_config(steps=1), "out": out, "resume": True}
    with pytest.raises(UserError, match=r"method teacher='\w{12}\.\.\.', but the run in .*run was started with method"):
        learn(make(SPARSE, 6), **short)
    with pytest.raises(UserError, match=r"method recipe.alpha=0\.25, but .* method recipe.alpha=0\.5; use the same"):
        learn(teacher, dataclasses.replace(KD, alpha=0.25), **short)
    with pytest.raises(UserError, match=r"method weights.num=0\.25, but .* method weights.num=None"):
        learn(teacher, weights={"num": 0.25}, **short)
    with pytest.raises(UserError, match=r"method name='language-model', but .* method name='distillation'"):
        train(short["run"], DATA, VALIDATION, TOKENIZER, out=out, resume=True)
    assert learn(teacher, **short).step == 1


def test_a_cache_of_every_word_is_the_live_teacher(live, teacher, tmp_path):
    recipe = dataclasses.replace(KD, top_k=257)
    seen = []
    cache = cache_teacher(
        tmp_path / "cache", run_config(), recipe, teacher, DATA, TOKENIZER, progress=lambda *now: seen.append(now)
    )
    assert seen == [(step, 4) for step in (1, 2, 3, 4)]
    assert cache.header.k == 257
    np.testing.assert_allclose(losses(learn(cache, recipe)), losses(live), rtol=2e-3)  # float16 on disk
    np.testing.assert_allclose(losses(learn(teacher, recipe)), losses(live), rtol=1e-5)


def test_a_cache_that_does_not_fit_is_refused(teacher, tmp_path):
    recipe = dataclasses.replace(KD, top_k=3)
    cache = cache_teacher(tmp_path / "cache", run_config(steps=2), recipe, teacher, DATA, TOKENIZER)
    with pytest.raises(UserError, match="holds 2 of 4 steps"):
        learn(cache, recipe)
    with pytest.raises(UserError, match="seed is 0, not 1"):
        learn(cache, recipe, run_config(steps=2, seed=1))
    with pytest.raises(UserError, match="k is 3, not None"):
        learn(cache, KD, run_config(steps=2))
    with pytest.raises(UserError, match=r"temperature is 1\.0, not 2\.0"):
        learn(cache, dataclasses.replace(recipe, temperature=2.0), run_config(steps=2))
    other = training_data([dataclasses.replace(TEXT[0], text="another text")], TOKENIZER)
    with pytest.raises(UserError, match="data is"):
        distill(run_config(steps=2), recipe, cache, other, VALIDATION, TOKENIZER)
    with pytest.raises(UserError, match="on-policy steps need the teacher itself"):
        learn(cache, DistillRecipe(on_policy_fraction=0.5), run_config(steps=2))
    with pytest.raises(UserError, match="top_k=None; give top_k"):
        cache_teacher(tmp_path / "new", run_config(), KD, teacher, DATA, TOKENIZER)
    assert load_cache(tmp_path / "cache").steps == 2


def test_a_teacher_that_does_not_fit_is_refused():
    for changes, message in (
        ({"vocab_size": 300}, "the teacher has vocab_size=300, the student 257"),
        ({"context_length": 8}, "the teacher has context_length=8, the student 12"),
    ):
        other = MoETransformer(DENSE.replace(**changes), rngs=nnx.Rngs(0))
        with pytest.raises(UserError, match=message):
            learn(other)


# Several teachers


def test_each_row_is_judged_by_the_teacher_of_its_domain(teacher):
    other, asked = make(DENSE, 6), []
    changes = changes_of({"abc": teacher, "num": other}, weights={"num": 0.25})
    for step in range(6):
        batch = DATA.batch(0, step, 3, 12)
        extra = changes.extra_for(step, batch)
        asked += [set(batch.domains.tolist())]
        tokens = jnp.asarray(batch.tokens)
        want = [forward((teacher, other)[domain], tokens)[row] for row, domain in enumerate(batch.domains)]
        np.testing.assert_allclose(extra.teacher, np.stack(want), atol=1e-5)
        assert extra.rows.tolist() == [(1.0, 0.25)[domain] for domain in batch.domains]
    assert {0, 1} in asked


def test_a_teacher_without_a_row_is_not_asked(teacher, monkeypatch):
    calls = []

    def ask(model, *args, **kwargs):
        calls.append(model)
        return jnp.zeros((3, 12, 257))

    monkeypatch.setattr("minimoe.distill.offline.ask_teacher", ask)
    specialists = {"abc": teacher, "num": make(DENSE, 6)}
    batch = DATA.batch(0, 0, 3, 12)
    guide = changes_of(specialists).extra_for.__self__
    guide._ask(["num"] * 3, batch)
    assert [model is specialists["num"] for model in calls] == [True]
    calls.clear()
    guide = changes_of(teacher).extra_for.__self__
    guide._ask(["abc", "num", "abc"], batch)
    assert len(calls) == 1


def test_the_teacher_of_all_other_domains_has_no_name(teacher):
    other = make(DENSE, 6)
    batch = DATA.batch(0, 0, 3, 12)
    named = changes_of({"abc": teacher, "num": other}).extra_for(0, batch)
    rest = changes_of({"abc": teacher, "": other}).extra_for(0, batch)
    np.testing.assert_array_equal(named.teacher, rest.teacher)


def test_teachers_that_are_missing_and_weights_that_make_no_sense(teacher):
    with pytest.raises(UserError, match="no teacher for num; name one for each domain"):
        learn({"abc": teacher})
    with pytest.raises(UserError, match=r"weights=\{'poems': 1\.0\} must be .* of domains: abc, num"):
        learn(teacher, weights={"poems": 1.0})
    with pytest.raises(UserError, match=r"weights=\{'abc': -1\}"):
        learn(teacher, weights={"abc": -1})


# Who may learn from whom


@pytest.mark.parametrize(
    ("teaching", "learning", "method"),
    [
        (SPARSE, DENSE, None),
        (DENSE, SPARSE, None),
        (SPARSE, SMALLER, None),
        (SPARSE, SPARSE, QuantizationAware("mxfp4")),
        ("int8", DENSE, None),
    ],
    ids=["sparse to dense", "dense to sparse", "sparse to smaller", "to quantized", "from quantized"],
)
def test_any_model_learns_from_any(teaching, learning, method):
    run = run_config(learning, steps=2, learning_rate=0.02)
    model = quantize_model(make(SPARSE, 5), teaching) if isinstance(teaching, str) else make(teaching, 5)
    first, second = losses(learn(model, DistillRecipe(alpha=1.0), run, method=method))
    assert 0 < second < first + 0.1
    assert np.isfinite([first, second]).all()


def test_a_student_that_starts_from_given_weights(teacher):
    start = nnx.clone(teacher)
    result = learn(teacher, DistillRecipe(alpha=1.0), run_config(steps=1), model=start)
    assert losses(result)[0] < 1e-6
    assert result.model is not start
    assert np.isfinite(start.norm.scale[...]).all(), "its arrays are still there"


# Through text alone


def test_sampled_documents_are_what_the_teacher_writes(teacher):
    prompts = [Document("abc", "train", "p", "ab"), Document("num", "train", "q", "0123")]
    greedy = sample_documents(teacher, TOKENIZER, prompts, max_new_tokens=4, temperature=0)
    assert [one.domain for one in greedy] == ["abc", "num"]
    assert [one.key for one in greedy] == ["p/sampled/0", "q/sampled/0"]
    assert all(one.text.startswith(prompt.text) for one, prompt in zip(greedy, prompts, strict=True))
    assert greedy == sample_documents(teacher, TOKENIZER, prompts, max_new_tokens=4, temperature=0, seed=0)
    drawn = [sample_documents(teacher, TOKENIZER, prompts, max_new_tokens=4, seed=seed)[0].text for seed in range(4)]
    assert len(set(drawn)) > 1
    data = training_data(greedy, TOKENIZER)
    assert train(run_config(DENSE, steps=1), data, VALIDATION, TOKENIZER).step == 1
