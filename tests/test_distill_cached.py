"""The teacher's answers on disk: what goes in comes out, interrupted or not, and a foreign cache is refused."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from minimoe.distill import (
    CacheHeader,
    TopK,
    forward_kl,
    load_cache,
    model_fingerprint,
    top_k_targets,
    topk_kl,
    write_cache,
)
from minimoe.errors import UserError
from minimoe.files import only_writer

B, L, V, K = 2, 3, 11, 4
HEADER = CacheHeader("teacher", "bpe", "corpus", V, K, seed=0, batch_size=B, length=L, steps_per_shard=3)


def logits_at(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(B, L, V)).astype(np.float32) * 3


class Teacher:
    """Remembers which steps it was asked, and is interrupted at one."""

    def __init__(self, stop_at: int | None = None):
        self.asked: list[int] = []
        self.stop_at = stop_at

    def __call__(self, step: int) -> TopK:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(step)
        return top_k_targets(jnp.asarray(logits_at(step)), K)


def assert_holds(cache, steps):
    assert cache.steps == steps
    for step, top in cache.batches():
        log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits_at(step))), np.float64)
        order = np.argsort(-log_p, axis=-1, kind="stable")[..., :K]
        np.testing.assert_array_equal(top.ids, order)
        np.testing.assert_allclose(top.values, np.take_along_axis(log_p, order, -1), rtol=1e-3)
        kept = np.exp(np.take_along_axis(log_p, order, -1)).sum(-1)
        np.testing.assert_allclose(top.tail, np.log(1 - kept), rtol=2e-3)
        assert (top.ids.dtype, top.values.dtype, top.tail.dtype) == (np.uint16, np.float16, np.float16)


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_round_trip(tmp_path, steps):
    assert_holds(write_cache(tmp_path, HEADER, Teacher(), steps), steps)
    cache = load_cache(tmp_path, teacher="teacher", k=K, tokenizer="bpe")
    assert cache.header == HEADER
    assert_holds(cache, steps)
    assert [step for step, _ in cache.batches(first=1)] == list(range(1, steps))


def test_bytes_are_what_they_are_said_to_be(tmp_path):
    cache = write_cache(tmp_path, HEADER, Teacher(), 6)
    assert HEADER.bytes_per_token == K * (2 + 2) + 2
    top = cache.batch(0)
    assert sum(array.nbytes for array in (top.ids, top.values, top.tail)) == B * L * HEADER.bytes_per_token
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert 0 <= on_disk - cache.num_bytes < 600 * 2, "only the two files' own headers on top"


@pytest.mark.parametrize("stop_at", [0, 2, 3, 4, 6])
def test_an_interruption_keeps_every_finished_step_and_none_is_asked_twice(tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path, HEADER, Teacher(stop_at), 7)
    assert load_cache(tmp_path).steps == stop_at
    again = Teacher()
    assert_holds(write_cache(tmp_path, HEADER, again, 7), 7)
    assert again.asked == list(range(stop_at, 7))
    unbroken = write_cache(tmp_path / "unbroken", HEADER, Teacher(), 7)
    for path in unbroken.folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


@pytest.mark.parametrize("begun", [0, 2])
def test_what_a_killed_process_left_is_cleared_away(tmp_path, begun):
    if begun:
        write_cache(tmp_path, HEADER, Teacher(), begun)
    for name in (".saving-half", ".lock"):
        (tmp_path / name).write_text("half")
    assert_holds(write_cache(tmp_path, HEADER, Teacher(), 3), 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.safetensors", "header.json"]


def test_one_process_writes_and_all_may_read(tmp_path):
    write_cache(tmp_path, HEADER, Teacher(), 2)
    idle = Teacher()
    with only_writer(tmp_path):
        assert_holds(write_cache(tmp_path, HEADER, idle, 2), 2)
        with pytest.raises(UserError, match="is being written by another process"):
            write_cache(tmp_path, HEADER, idle, 3)
    assert idle.asked == []


def test_more_steps_later_and_fewer_change_nothing(tmp_path):
    write_cache(tmp_path, HEADER, Teacher(), 4)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    idle = Teacher()
    assert write_cache(tmp_path, HEADER, idle, 2).steps == 4
    assert idle.asked == []
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert_holds(write_cache(tmp_path, HEADER, Teacher(), 8), 8)


def test_a_file_left_behind_by_a_kill_is_ignored(tmp_path):
    write_cache(tmp_path, HEADER, Teacher(), 3)
    (tmp_path / ".00001.safetensors.abc.part").write_bytes(b"half")
    assert_holds(load_cache(tmp_path), 3)


def test_a_lost_shard_ends_the_cache_and_is_written_again(tmp_path):
    write_cache(tmp_path, HEADER, Teacher(), 9)
    (tmp_path / "00001.safetensors").unlink()
    assert load_cache(tmp_path).steps == 3
    assert_holds(write_cache(tmp_path, HEADER, Teacher(), 9), 9)


def test_another_header_is_refused_with_all_that_differs(tmp_path):
    write_cache(tmp_path, HEADER, Teacher(), 1)
    with pytest.raises(UserError, match=r"teacher is 'teacher', not 'other'; seed is 0, not 1; use another folder"):
        load_cache(tmp_path, teacher="other", seed=1, k=K)
    with pytest.raises(UserError, match="k is 4, not 5"):
        write_cache(tmp_path, dataclasses.replace(HEADER, k=5), Teacher(), 2)
    with pytest.raises(UserError, match="tokeniser is None"):
        load_cache(tmp_path, tokeniser="bpe")


def test_damage_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no header\.json"):
        load_cache(tmp_path)
    cache = write_cache(tmp_path, HEADER, Teacher(), 9)
    cache.path(0).write_bytes(cache.path(0).read_bytes()[:-5])
    with pytest.raises(UserError, match=r"00000\.safetensors cannot be read"):
        load_cache(tmp_path).batch(0)
    small = write_cache(tmp_path / "small", dataclasses.replace(HEADER, length=1), lambda _: cut(L - 1), 3)
    cache.path(1).write_bytes(small.path(0).read_bytes())
    with pytest.raises(UserError, match=r"00001\.safetensors: ids is not what header\.json says"):
        load_cache(tmp_path).batch(3)
    with pytest.raises(UserError, match=r"step 9 is not in .* which holds 9 steps"):
        load_cache(tmp_path).batch(9)
    header = tmp_path / "header.json"
    for broken in ("{", "[]", json.dumps({"format": "other"}), json.dumps({"format": "minimoe-teacher-cache-1"})):
        header.write_text(broken)
        with pytest.raises(UserError, match="is broken"):
            load_cache(tmp_path)


def cut(missing: int) -> TopK:
    top = top_k_targets(jnp.asarray(logits_at(0)), K)
    return TopK(top.values[:, missing:], top.ids[:, missing:], top.tail[:, missing:])


def test_a_short_middle_shard_is_named(tmp_path):
    cache = write_cache(tmp_path, HEADER, Teacher(), 6)
    short = write_cache(tmp_path / "short", HEADER, Teacher(), 1)
    cache.path(0).write_bytes(short.path(0).read_bytes())
    with pytest.raises(UserError, match="is cut short"):
        load_cache(tmp_path).batch(1)


def test_bad_answers_are_refused_and_nothing_is_written(tmp_path):
    top = top_k_targets(jnp.asarray(logits_at(0)), K)
    wrong = {
        r"ids have shape \(2, 3, 2\), not \(2, 3, 4\)": TopK(top.values[..., :2], top.ids[..., :2], top.tail),
        r"ids have shape \(1, 3, 4\), not \(2, 3, 4\)": TopK(top.values[:1], top.ids[:1], top.tail[:1]),
        r"words outside 0\.\.10": dataclasses.replace(top, ids=top.ids + V),
        "not finite": dataclasses.replace(top, values=top.values * jnp.nan),
    }
    for number, (words, answer) in enumerate(wrong.items()):
        folder = tmp_path / str(number)
        with pytest.raises(UserError, match=words):
            write_cache(folder, HEADER, lambda step, a=answer: a, 1)
        assert load_cache(folder).steps == 0
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("...")
    with pytest.raises(UserError, match="not a teacher cache"):
        write_cache(tmp_path / "foreign", HEADER, Teacher(), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 70_000}, "above 65536"),
        ({"k": 12}, "k=12 is above vocab_size=11"),
        ({"k": 0}, "k=0 must be a whole number of at least 1"),
    ],
)
def test_bad_headers(changes, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(HEADER, **changes)


def test_top_k_targets():
    logits = jnp.asarray(logits_at(0))
    whole = top_k_targets(logits, V)
    assert (whole.tail == -jnp.inf).all()
    cool = top_k_targets(logits, K, temperature=2.0)
    np.testing.assert_allclose(cool.values, top_k_targets(logits / 2, K).values, rtol=1e-6)
    total = jnp.exp(cool.values).sum(axis=-1) + jnp.exp(cool.tail)
    np.testing.assert_allclose(total, np.ones((B, L)), rtol=1e-5)
    for k in (0, V + 1):
        with pytest.raises(UserError, match=f"k={k} must be in 1..11"):
            top_k_targets(logits, k)
    with pytest.raises(UserError, match="temperature=0 must be above 0"):
        top_k_targets(logits, 1, 0)


def test_extreme_and_masked_logits_survive_float16(tmp_path):
    """Probabilities below float16's log range become -inf, which the loss takes for 0."""
    logits = np.zeros((B, L, V), np.float32)
    logits[..., 1:] = -1e6
    logits[..., 2] = -np.inf
    header = dataclasses.replace(HEADER, k=V)
    cache = write_cache(tmp_path, header, lambda step: top_k_targets(jnp.asarray(logits), V), 1)
    top = jax.tree.map(jnp.asarray, cache.batch(0))
    student = jnp.asarray(logits_at(1))
    loss = jax.jit(jax.value_and_grad(lambda x: topk_kl(x, top.values, top.ids, top.tail).sum()))
    value, slope = loss(student)
    np.testing.assert_allclose(value, -jax.nn.log_softmax(student)[..., 0].sum(), rtol=1e-5)
    assert np.isfinite(slope).all()


def test_the_loss_from_disk_is_the_loss(tmp_path):
    """Half precision of log-probabilities costs little, and the whole vocabulary gives the whole KL."""
    header = dataclasses.replace(HEADER, k=V)
    cache = write_cache(tmp_path, header, lambda step: top_k_targets(jnp.asarray(logits_at(step)), V), 1)
    top = jax.tree.map(jnp.asarray, cache.batch(0))
    student = jnp.asarray(logits_at(5))
    want = forward_kl(student, jnp.asarray(logits_at(0)))
    found = jax.jit(topk_kl)(student, top.values, top.ids, top.tail)
    np.testing.assert_allclose(found, want, rtol=2e-3)


class Bias(nnx.Variable):
    """Not a parameter, but it decides what the teacher says."""


class Model(nnx.Module):
    def __init__(self, seed: int):
        self.inner = nnx.Linear(2, 3, rngs=nnx.Rngs(seed))
        self.bias = Bias(jnp.zeros(3))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(seed + 1))


def test_fingerprint_sees_every_variable():
    """And not the state of random streams, which a teacher that only answers does not use."""
    first, again = Model(0), Model(0)
    before = model_fingerprint(first)
    assert before == model_fingerprint(again) != model_fingerprint(Model(1))
    again.dropout.rngs()
    assert before == model_fingerprint(again)
    again.bias[...] = again.bias[...].at[0].add(1e-3)
    assert before != model_fingerprint(again)
    first.inner.kernel.set_value(first.inner.kernel[...].reshape(3, 2))
    assert before != model_fingerprint(first)
