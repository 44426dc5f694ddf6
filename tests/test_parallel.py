"""The parallel room: equal to one device, in value and gradient, on eight simulated ones; and what does not fit, named."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from minimoe import GroupedQueryConfig, ModelConfig, MoEConfig, UserError
from minimoe.cost import count_params
from minimoe.parallel import (
    AXES,
    RULES,
    check_model,
    devices_per_token,
    join,
    make_mesh,
    parse_mesh,
    spec_for,
    step_bytes,
    zero_spec,
)
from minimoe.parallel.meeting import meet
from minimoe.parallel.reach import rows_per_device

HERE = Path(__file__).parent
ROUNDING = 2e-5  # float32 sums in another order, over the largest entry of an array


def start_on(devices: int, script: str, *arguments: str) -> subprocess.Popen[str]:
    # With conftest's flags: these programs run once and are small. Without them they take 2.5 times as long to compile.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    known = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = known | {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer_of(process: subprocess.Popen[str]) -> dict:
    """The JSON object in the last line that it prints."""
    with process:
        try:
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, err[-3000:]
    assert "rematerialization" not in err  # the compiler found no good way between two layouts
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def on_eight(folder):
    return answer_of(start_on(8, "parallel_on_eight.py", str(folder)))


NAMES = ("all to one device", "three axes, dropping", "experts choose")


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_what_it_is_on_one_device(on_eight, name):
    """Outputs, counts, balance loss; gradients of every parameter and of the input, through both."""
    found = on_eight["layers"][name]
    assert found["values"] < ROUNDING
    assert found["gradients"] < ROUNDING
    assert found["kind"] == "Experts"


def test_the_cases_are_what_they_say(on_eight):
    """One of them needs several rounds, one drops, and each device holds its part of the experts."""
    layers = on_eight["layers"]
    assert on_eight["devices"] == 8
    assert layers["all to one device"]["load"][0] == sum(layers["all to one device"]["load"])
    assert layers["all to one device"]["rows"] < layers["all to one device"]["tokens"]
    assert layers["experts choose"]["rows"] == layers["experts choose"]["tokens"]
    assert 0.05 < layers["three axes, dropping"]["dropped"] < 0.9
    assert [layers[name]["held"] for name in NAMES] == [1, 4, 4]


def test_bytes_of_the_compiled_program_are_those_of_the_formula(on_eight):
    """All-to-all of the first round, forwards and backwards; a group limit halves it. Further rounds are in a loop."""
    free, limited = (on_eight["traffic"][kept] for kept in ("0", "2"))
    for found in (free, limited):
        assert found["sent"]["all-to-all"] == found["formula"]
        assert found["again"]["all-to-all"] > found["formula"]  # these compute their activations again
    assert limited["formula"] < 0.6 * free["formula"]


@pytest.mark.parametrize("spec", ["data=2,expert=4", "data=8"])
def test_bytes_of_a_whole_step_are_those_of_the_formula(on_eight, spec):
    """All that is beyond the formula is named: 128 token ids, rows of their gradient, and numbers for the metrics."""
    sent, formula = (on_eight["step traffic"][spec][key] for key in ("sent", "formula"))
    ids, rows, share = 128 * 4, 16 * 16 * 4, 7 / 8
    assert sent["all-gather"] == formula["all-gather"] + share * ids
    assert sent["all-to-all"] == formula["all-to-all"] + share * rows
    assert 0 < sent["all-reduce"] - formula["all-reduce"] < 0.01 * sent["all-reduce"]
    assert sent["reduce-scatter"] == sent["collective-permute"] == 0
    assert (formula["all-to-all"] > 0) == ("expert" in spec)


def test_bytes_of_a_step_by_hand_and_what_has_no_formula():
    """Two devices, no experts: each sends half of everything twice to sum it, and the half that it updates of matrices."""
    dense = ModelConfig.preset("nano").dense_equivalent()
    vectors = 4 * dense.d_model * (2 * dense.num_layers + 1)  # norms
    whole = 4 * count_params(dense).total
    sent = step_bytes(dense, mesh_of(data=2), 8, 256)
    assert sent == {"all-reduce": whole, "all-gather": (whole - vectors) / 2, "all-to-all": 0}
    assert set(step_bytes(ModelConfig.preset("nano"), mesh_of(), 8, 256).values()) == {0}  # one device
    with pytest.raises(UserError, match="axes data and expert"):
        step_bytes(dense, mesh_of(tensor=2), 8, 256)
    with pytest.raises(UserError, match="data=3"):
        step_bytes(dense, mesh_of(data=3), 8, 256)


def test_tokens_that_the_devices_do_not_divide(on_eight):
    assert on_eight["odd"] < ROUNDING


def test_losses_are_those_of_one_device(on_eight):
    """Loss, gradient norm and imbalance of every step, with the balance loss and the bias in work."""
    losses = on_eight["training"]["losses"]
    assert len(losses["one"]) == 4
    np.testing.assert_allclose(losses["eight"], losses["one"], rtol=1e-5)
    assert losses["one"][0] != losses["one"][3]
    assert on_eight["training"]["weights"] < 1e-3  # AdamW divides by small numbers


def test_saved_on_eight_resumed_on_one(on_eight):
    losses = on_eight["training"]["losses"]
    assert losses["again"][:2] == losses["eight"][:2]
    np.testing.assert_allclose(losses["again"], losses["eight"], rtol=1e-5)


def test_a_checkpoint_does_not_depend_on_the_mesh(on_eight):
    """Config, names, shapes and places of arrays: the same bytes. The model that comes back is on one device."""
    said = on_eight["training"]["files"]
    assert said["one"] == said["eight"]
    assert on_eight["training"]["specs"]["one"] == on_eight["training"]["specs"]["eight"]


def test_a_step_leaves_everything_where_the_rules_put_it(on_eight):
    before, after = on_eight["state"]["before"], on_eight["state"]["after"]
    assert before == after
    # Whole experts: 2 of 8. Their moments are halved once more over data, other moments split in 8, vectors not at all.
    assert list(before.values()) == [[2, 8, 16], [16], [2, 4, 16], [2, 16], [16]]


def test_two_processes_go_on_with_what_eight_devices_saved(on_eight, folder):
    """Over loopback, with `jax.distributed`; the first process alone reads and writes."""
    port = free_port()
    both = [start_on(1, "parallel_process.py", str(folder / "two"), port, str(index)) for index in (0, 1)]
    answers = [answer_of(process) for process in both]
    expected = [step[0] for step in on_eight["training"]["losses"]["eight"]][2:]
    for answer in answers:
        assert answer["devices"] == [1, 2]
        assert answer["step"] == 4
        np.testing.assert_allclose(answer["losses"], expected, rtol=1e-5)
    assert (folder / "two" / "checkpoints" / "4").is_dir()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_processes_from_the_command_line_train_as_one(tmp_path):
    """Each is `minimoe train` with its own --process; the first alone writes, and its losses are those of one process."""
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 400)
    where = f"127.0.0.1:{free_port()}"
    alone = start_on(1, "parallel_command.py", str(tmp_path), "alone")
    both = [
        start_on(1, "parallel_command.py", str(tmp_path), f"two-{index}", "--mesh", "data=2", "--coordinator", where,
                 "--processes", "2", "--process", str(index))
        for index in (0, 1)
    ]  # fmt: skip
    answers = [answer_of(process) for process in (alone, *both)]
    assert [answer["code"] for answer in answers] == [0, 0, 0]
    assert [answer["devices"] for answer in answers] == [[1, 1], [1, 2], [1, 2]]
    records = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "two-0")
    ]
    alone, two = ({record["kind"]: record for record in found} for found in records)
    assert alone["train"]["step"] == two["train"]["step"] == 3
    assert two["train"]["loss"] == pytest.approx(alone["train"]["loss"], rel=1e-5)
    assert two["eval"]["bits_per_byte"] == pytest.approx(alone["eval"]["bits_per_byte"], rel=1e-5)
    assert (tmp_path / "two-0" / "curve.png").is_file()
    assert not (tmp_path / "two-1").exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("127.0.0.1:7", 2, None, "data=2"), "--process is missing"),
        ((None, 2, 0, "data=2"), "--coordinator is missing"),
        (("127.0.0.1", 2, 0, "data=2"), "'127.0.0.1' is not HOST:PORT"),
        (("127.0.0.1:7", 1, 0, "data=2"), "--processes=1"),
        (("127.0.0.1:7", 2, 2, "data=2"), "--process=2"),
        (("127.0.0.1:7", 2, 0, None), "give --mesh too"),
    ],
)
def test_processes_that_cannot_join_are_refused(values, said):
    with pytest.raises(UserError) as caught:
        join(*values)
    assert said in str(caught.value)
    assert join(None, None, None, None)  # one process, which writes


def open_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def met(port: int, members: list[tuple[int, int]], seconds: float = 20.0) -> list[str]:
    """What ``(count, index)`` members hear who come to one port, one after the other; "" of whom all went well."""

    def come(member: tuple[int, int]) -> str:
        try:
            meet(f"127.0.0.1:{port}", *member, seconds)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(members)) as pool:
        waiting = []
        for member in members:
            waiting.append(pool.submit(come, member))
            time.sleep(0.3)
        return [one.result() for one in waiting]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_processes_meet_in_any_order_and_leave_the_port_free(order):
    port = open_port()
    assert met(port, [(3, index) for index in order]) == ["", "", ""]
    socket.create_server(("127.0.0.1", port)).close()


def test_who_does_not_come_is_named_to_all_in_time():
    began = time.monotonic()
    first, second = met(open_port(), [(3, 0), (3, 1)], seconds=2)
    assert "process 0 of 3: --process 2 did not come to 127.0.0.1:" in first
    assert "process 1 of 3: --process 2 did not come" in second
    assert time.monotonic() - began < 10
    assert "nobody listened at 127.0.0.1:" in met(open_port(), [(2, 1)], seconds=1)[0]


def test_wrong_numbers_are_refused_and_the_others_still_meet():
    said = met(open_port(), [(3, 0), (3, 1), (3, 1), (2, 1), (3, 2)])
    assert [said[0], said[1], said[4]] == ["", "", ""]
    assert "another process is --process 1 already" in said[2]
    assert "process 0 waits for --processes 3, not 2" in said[3]


def test_a_port_that_cannot_be_used_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert f"127.0.0.1:{taken} cannot be used (Address already in use)" in met(taken, [(2, 0)])[0]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
            assert "is no process 0 that waits for others" in met(taken, [(2, 1)], seconds=2)[0]
            answer.result()
    for port in (0, 99_999):
        assert "is not in 1..65535" in met(port, [(2, 0)])[0]


def test_a_stranger_at_the_port_does_not_count():
    port = open_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(met, port, [(2, 0)])
        time.sleep(0.5)
        for line in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": [7], "processes": 2}\n'):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(line)
        assert met(port, [(2, 1)]) == [""]
        assert first.result() == [""]


def mesh_of(**sizes: int) -> AbstractMesh:
    """A mesh without devices, for what only reads its sizes."""
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data=2,model=4", "axis 'model' is not known; choose among data, expert, tensor"),
        ("data:2", "'data:2' is not axis=size; write for example data=2,expert=4"),
        ("data=2,data=2", "data=2 is there twice"),
        ("expert=0", "expert=0 must be at least 1"),
        ("data=64,expert=4", "data=64 * expert=4 needs 256 devices"),
        ("data=64", "XLA_FLAGS=--xla_force_host_platform_device_count=64"),
    ],
)
def test_a_mesh_that_cannot_be(text, said):
    with pytest.raises(UserError) as caught:
        make_mesh(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mesh", ["data=64", "expert=0", "expert"])
def test_the_command_refuses_a_mesh_in_one_line(mesh, tmp_path, capsys):
    from minimoe.cli import app

    assert app.run(["train", "--mesh", mesh, "--tokenizer", "byte", "--out", str(tmp_path / "run")]) == 2
    assert repr(mesh) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


ATTENTION = GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=4)
MODEL = ModelConfig(
    vocab_size=20,
    d_model=8,
    num_layers=1,
    context_length=8,
    attention=ATTENTION,
    moe=MoEConfig(d_model=8, d_expert=6, num_experts=6, top_k=2, num_shared_experts=1),
)


@pytest.mark.parametrize(
    ("sizes", "batch", "said"),
    [
        ({"expert": 4}, 4, "axis expert=4 does not divide num_experts=6; use expert= one of 1, 2, 3, 6"),
        ({"tensor": 4}, 4, "axis tensor=4 does not divide num_kv_heads=2; use tensor= one of 1, 2"),
        ({"data": 2, "expert": 3}, 8, "data=2 * expert=3 split the sequences of a batch, but batch_size=8"),
    ],
)
def test_a_model_that_does_not_fit_names_the_axis(sizes, batch, said):
    with pytest.raises(UserError, match=said.replace("*", r"\*")):
        check_model(MODEL, mesh_of(**sizes), batch)


def test_a_model_that_fits():
    check_model(MODEL, mesh_of(data=2, expert=3, tensor=2), 12)


def test_a_dense_model_has_no_experts_to_deal_out():
    with pytest.raises(UserError, match="expert=2: the model is dense"):
        check_model(MODEL.dense_equivalent(), mesh_of(expert=2), 4)


def test_unnamed_axes_have_size_one():
    assert parse_mesh(" tensor = 2 ") == {"data": 1, "expert": 1, "tensor": 2}


def test_every_rule_names_something():
    """A rule that no parameter of our models meets is a rule with a typing error."""
    from flax import nnx

    from minimoe import MoETransformer
    from minimoe.attention import MultiHeadLatentConfig
    from minimoe.model.paths import named_leaves

    latent = MultiHeadLatentConfig(num_heads=2, kv_rank=4, nope_dim=2, rope_dim=2, v_dim=2, q_rank=4)
    biased = GroupedQueryConfig(num_heads=4, num_kv_heads=2, head_dim=4, bias=True)
    names = set()
    for config in (MODEL.replace(attention=biased, tie_embeddings=False), MODEL.replace(attention=latent)):
        names |= set(named_leaves(nnx.eval_shape(lambda config=config: MoETransformer(config, rngs=nnx.Rngs(0)))))
    met = {id(rule) for rule in RULES for name in names if spec_for(name, [rule]) != P()}
    assert met == {id(rule) for rule in RULES}


def test_moments_are_split_where_weights_are_not():
    mesh = mesh_of(data=2, expert=4)
    assert zero_spec(P("expert"), (8, 6, 4), mesh) == P("expert", "data", None)
    assert zero_spec(P(), (16, 4), mesh) == P(("data", "expert"), None)
    assert zero_spec(P(), (6, 3), mesh) == P("data", None)  # 8 divides nothing, 2 does
    assert zero_spec(P(), (8,), mesh) == P()
    assert zero_spec(P(), (3, 5), mesh) == P()
    assert zero_spec(P("tensor", None), (8, 8), mesh_of(data=2, tensor=2)) == P("tensor", ("data", "expert"))


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (8, 3), (2, 1)])
def test_devices_per_token_is_the_mean_over_all_choices(groups, kept):
    """Enumerated: every set of groups, every K experts of those; as if all were equally likely."""
    experts, devices = 8, 4
    top_k = min(3, kept * experts // groups)
    config = MoEConfig(8, 8, experts, top_k, select="group_limited", num_groups=groups, top_k_groups=kept)
    size = experts // groups
    reached = []
    for chosen in itertools.combinations(range(groups), kept):
        inside = [group * size + i for group in chosen for i in range(size)]
        reached += [len({e * devices // experts for e in pick}) for pick in itertools.combinations(inside, top_k)]
    np.testing.assert_allclose(devices_per_token(config, devices), np.mean(reached), rtol=1e-12)


def test_rows_of_a_round():
    config = MoEConfig(8, 8, 16, 2)
    assert rows_per_device(config, 4, 256) < 256
    assert rows_per_device(config, 4, 3) == 3  # room for all
    assert rows_per_device(config, 1, 256) == 256
