"""A machine as numbers: what lies between the measured shapes, as a chip, as a record; and the clock that fills it."""

from __future__ import annotations

import itertools
import json

import pytest

from minimoe import ModelConfig, UserError
from minimoe.cost import Machine, decode_step, decode_traffic, machine, machine_clock

NANO = ModelConfig.preset("nano")


def law(m: int, k: int, n: int) -> float:
    """Seconds where the rate is a power of each size: what interpolation in logarithms must give back exactly."""
    return m * k * n / (1e9 * m**0.3 * k**0.2 * n**0.1)


def made(seconds=law) -> Machine:
    grid = {shape: seconds(*shape) for shape in machine.grid_shapes()}
    peaks = {"float32": 2e11, "bfloat16": 1e11}
    return Machine(
        "made up",
        2,
        8 * 10**9,
        grid,
        peaks,
        {2**20: 8e10, 2**30: 2e10},
        {(rows, size): rate / rows for rows in machine.FEW_ROWS for size, rate in ((2**20, 4e10), (2**30, 1e10))},
        dict.fromkeys(machine.KINDS, 1e9),
        {20: 1e-7, 320: 4e-7},
        {2**14: 4e10, 2**24: 1e10},
        {2**20: 2e10, 2**30: 5e9},
    )


def test_shapes_between_the_measured_ones_follow_the_law():
    for shape in itertools.product((1, 3, 100, 1024), (32, 50, 500), (40, 256, 1000)):
        assert made().matmul(*shape) == pytest.approx(law(*shape))


def test_measured_shapes_are_as_measured_and_beyond_them_the_rate_stays():
    mine = made(lambda m, k, n: 1e-9 * m * k * n + 1e-6 * (m + k + n))
    assert all(mine.matmul(*shape) == pytest.approx(taken) for shape, taken in mine.matmul_seconds.items())
    m, k, n = (axis[-1] for axis in (machine.ROWS, machine.INNER, machine.COLUMNS))
    assert mine.matmul(4 * m, 2 * k, n) == pytest.approx(8 * mine.matmul(m, k, n))
    assert mine.matmul(1, 8, 8) == pytest.approx(mine.matmul(1, 32, 32) / 16)


def test_bandwidth_by_the_bytes_that_are_worked_on():
    assert [made().bytes_per_second(size) for size in (1, 2**20, 2**30, 2**40)] == pytest.approx(
        [8e10, 8e10, 2e10, 2e10]
    )
    assert made().reads_per_second(4, 2**25) == pytest.approx(2e10 / 4)
    assert made().bytes_per_second(2**25) == pytest.approx(4e10)  # half-way in both logarithms
    assert [made().turns_per_second(size) for size in (1, 2**19, 2**30)] == pytest.approx([4e10, 2e10, 1e10])
    assert [made().slices_per_second(size) for size in (1, 2**25, 2**40)] == pytest.approx([2e10, 1e10, 5e9])


def test_an_operation_costs_more_in_a_large_program():
    assert [made().call(size) for size in (1, 20, 80, 320, 5000)] == pytest.approx([1e-7, 1e-7, 2e-7, 4e-7, 4e-7])


def test_as_a_chip_it_has_a_roofline():
    step = decode_step(NANO, made().chip(), 4, 100)
    traffic = decode_traffic(NANO, 4, 100)
    assert step.read == pytest.approx((traffic.dense_bytes + traffic.expert_bytes + traffic.cache_bytes) / 2e10)
    assert step.calculate == pytest.approx(traffic.flops / 1e11)
    assert step.unverified == ()


def test_a_record_reads_back():
    mine = made()
    again = Machine.from_record(json.loads(json.dumps(mine.to_record())))
    assert again.to_record() == mine.to_record()
    assert again.matmul(77, 77, 77) == pytest.approx(mine.matmul(77, 77, 77), rel=0.01)  # three digits are kept
    older = Machine.from_record({k: v for k, v in mine.to_record().items() if k not in ("turning", "slicing")})
    assert older.turns_per_second(2**25) == older.slices_per_second(2**25) == older.bytes_per_second(2**25)
    with pytest.raises(UserError, match=r"broken: KeyError\('cores'\)"):
        Machine.from_record({name: value for name, value in mine.to_record().items() if name != "cores"})
    with pytest.raises(UserError, match="another grid"):
        Machine.from_record(mine.to_record() | {"matmul_seconds": [[1, 1, 1, 1.0]]})


def test_the_clock_fills_everything(monkeypatch):
    for name, value in {
        "LARGE": (16, 16, 16),
        "WORKING_SETS": (4096,),
        "TURNED": (4096,),
        "PIECE": 8,
        "ROUND_SECONDS": 1e-4,
        "NUMBERS": 1024,
        "LEVELS": (1, 2),
        "SIDE": 8,
    }.items():
        monkeypatch.setattr(machine_clock, name, value)
    monkeypatch.setattr(machine_clock, "grid_shapes", lambda: [(1, 8, 8), (8, 8, 8)])
    seen = []
    found = machine_clock.measure_machine(lambda done, total, what: seen.append((done, total)))
    assert seen == [(done, 17) for done in range(18)]
    tables = (
        found.matmul_seconds,
        found.bandwidth,
        found.reading,
        found.peak_flops,
        found.per_second,
        found.call_seconds,
        found.turning,
        found.slicing,
    )
    assert min(value for table in tables for value in table.values()) > 0
    assert found.cores >= 1
    assert set(found.bandwidth) == set(found.turning) == set(found.slicing) == {4096}
    assert tuple(found.per_second) == machine.KINDS
