"""Figures hold the data they were given, in every edge case, without a warning and without a screen."""

from __future__ import annotations

import ast
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import draw
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from minimoe import files, plots
from minimoe.errors import UserError
from minimoe.plots import coloured_text, records, style

DOMAINS = ["shakespeare", "bible_en", "python"]
Records = list[dict[str, Any]]


def make_records(steps: int = 40, layers: int = 4, evals: int = 4, protocol: str = "quick") -> Records:
    rng = np.random.default_rng(0)
    lines: Records = []
    for step in range(1, steps + 1):
        base: dict[str, Any] = {"step": step, "tokens": 1000 * step, "seconds": 0.1 * step}
        lines.append({**base, "kind": "train", "loss": 2 + 5 / step + 0.1 * float(rng.normal())})
        if layers:
            lines[-1]["max_violation"] = [float(v) for v in rng.uniform(0, 2, layers)]
        if evals and step % max(1, steps // evals) == 0:
            per_domain = {domain: 2.0 + i + 1 / step for i, domain in enumerate(DOMAINS)}
            mean = float(np.mean(list(per_domain.values())))
            lines.append(
                {**base, "kind": "eval", "protocol": protocol, "bits_per_byte": mean, "per_domain": per_domain}
            )
    return lines


def lines_of(axes) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]


def texts_of(axes) -> list[str]:
    return [item.get_text() for item in axes.texts]


# ---- curves


def test_training_curve_holds_loss_evals_and_balance():
    lines = make_records()
    loss, evals, balance = draw(plots.training_curve(lines, title="run $1")).axes
    train = records.of_kind(lines, "train")
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), [r["tokens"] for r in train])
    np.testing.assert_array_equal(lines_of(loss)[0], [r["loss"] for r in train])
    means = [r["bits_per_byte"] for r in lines if r["kind"] == "eval"]
    np.testing.assert_array_equal(lines_of(evals)[-1], means)
    assert set(texts_of(evals)) == {*DOMAINS, "mean"}
    violations = np.array([r["max_violation"] for r in train])
    np.testing.assert_array_equal(np.stack(lines_of(balance)[1::2], 1), violations)
    assert texts_of(balance) == ["── layer 0", "– – layer 1", "– · layer 2", "···· layer 3"]
    assert (loss.get_ylabel(), evals.get_ylabel(), balance.get_ylabel()) == (
        "loss (nats/token)",
        "bits per byte",
        "MaxVio",
    )
    assert balance.get_xlabel() == "tokens seen"


@pytest.mark.parametrize(
    ("lines", "panels"),
    [
        (make_records(layers=0), 2),
        (make_records(layers=1, evals=0), 2),
        (make_records(steps=1, layers=1, evals=1), 3),
        (make_records(layers=61), 3),
        ([r for r in make_records() if r["kind"] == "eval"], 1),
        ([{**make_records(steps=1)[0], "tokens": 0, "loss": float("nan"), "max_violation": []}], 1),
        (make_records() + make_records(protocol="full")[-1:], 3),
    ],
    ids=["dense", "no evals", "one step", "61 layers", "evals alone", "diverged at once", "both protocols"],
)
def test_training_curve_edge_cases(lines: Records, panels: int):
    assert len(draw(plots.training_curve(lines)).axes) == panels


def test_training_curve_of_nothing_is_refused():
    with pytest.raises(UserError, match="no train or eval line"):
        plots.training_curve([])


def test_compare_runs_on_each_axis():
    runs = {"dense": make_records(layers=0), "sparse": make_records(steps=20)}
    axes = draw(plots.compare_runs(runs)).axes[0]
    assert texts_of(axes) == ["── dense", "– – sparse"]
    assert axes.lines[1].get_linestyle() != axes.lines[3].get_linestyle()  # told apart without colour
    np.testing.assert_array_equal(lines_of(axes)[2], records.column(records.of_kind(runs["sparse"], "train"), "loss"))
    axes = draw(plots.compare_runs(runs, x="seconds", quantity="bits_per_byte")).axes[0]
    evals = records.of_kind(runs["dense"], "eval")
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), records.column(evals, "seconds"))
    np.testing.assert_array_equal(lines_of(axes)[0], records.column(evals, "bits_per_byte"))
    assert axes.get_xlabel() == "training time (s)"
    assert "quick" in axes.get_ylabel()


def test_compare_runs_skips_the_start_openly():
    axes = draw(plots.compare_runs({"a": make_records(), "short": make_records(steps=2)}, skip=0.25)).axes[0]
    assert axes.get_xlim()[0] == 10_000
    assert len(lines_of(axes)[0]) == 31


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": "steps"}, "x='steps' is not known; choose one of tokens, seconds"),
        ({"quantity": "accuracy"}, "quantity='accuracy' is not known"),
        ({"skip": 1.0}, r"skip=1.0 must be in \[0, 1\)"),
        ({"quantity": "bits_per_byte", "protocol": "full"}, r"runs \['a'\] have no bits per byte \(full protocol\)"),
    ],
)
def test_compare_runs_names_what_is_wrong(arguments: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        plots.compare_runs({"a": make_records()}, **arguments)


def test_protocols_are_never_mixed():
    runs = {"a": make_records(protocol="quick"), "b": make_records(protocol="full")}
    with pytest.raises(UserError, match="share no evaluation protocol"):
        plots.compare_runs(runs, quantity="bits_per_byte")


def test_moving_average_follows_a_line_and_ignores_nan():
    values = np.arange(50.0)
    np.testing.assert_allclose(records.smooth(values, 3)[3:-3], values[3:-3])
    values[20] = np.nan
    assert np.isfinite(records.smooth(values, 3)).all()
    np.testing.assert_array_equal(np.isnan(records.smooth(np.full(3, np.nan), 1)), True)


# ---- routing


@pytest.mark.parametrize("experts", [1, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("layers", [1, 3])
def test_heat_maps_show_the_share_against_uniform(experts: int, layers: int):
    load = np.random.default_rng(1).integers(1, 100, (3, layers, experts))
    figure = draw(plots.experts_by_domain(load, DOMAINS))
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == layers
    for layer, axes in enumerate(panels):
        share = load[:, layer] / load[:, layer].sum(-1, keepdims=True) * experts
        np.testing.assert_allclose(axes.images[0].get_array(), share)
        assert len(axes.texts) == (3 * experts if experts <= 16 else 0)
        assert axes.images[0].norm(1.0) == 0.5  # uniform is the middle of the colours


def test_a_domain_without_traffic_is_no_division_by_zero():
    load = np.ones((2, 1, 4))
    load[1] = 0
    axes = draw(plots.experts_by_domain(load, ["$a", "none"])).axes[0]
    assert texts_of(axes) == ["1.0"] * 4 + ["–"] * 4


def test_domain_names_must_match():
    with pytest.raises(UserError, match="2 domain names for 3 rows"):
        plots.experts_by_domain(np.ones((3, 1, 4)), ["a", "b"])


@pytest.mark.parametrize(("steps", "layers"), [(40, 4), (1, 1), (3, 30)])
def test_balance_over_time(steps: int, layers: int):
    lines = make_records(steps, layers)
    axes = draw(plots.balance_over_time(lines)).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0.0, 0.0])
    np.testing.assert_array_equal(
        lines_of(axes)[1], records.per_layer(records.of_kind(lines, "train"), "max_violation")[:, 0]
    )
    assert "every expert carries the mean" in axes.get_title(loc="left")


def test_balance_of_a_dense_run_is_refused():
    with pytest.raises(UserError, match="sparse model"):
        plots.balance_over_time(make_records(layers=0))


def test_each_token_has_the_colour_and_number_of_its_first_expert():
    tokens, experts = ["To", " be", "\n", "or$x$"], np.array([[3, 0], [0, 1], [11, 2], [3, 3]])
    axes = draw(plots.token_experts(tokens, experts, "layer 2")).axes[0]
    assert texts_of(axes) == ["To", "3", "·be", "0", "↵", "11", "or$x$", "3"]
    shades = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert shades[0] == shades[3]
    assert len(set(shades)) == 3


def test_every_character_is_drawn_as_something_visible():
    assert coloured_text.visible(" \t\r\n") == "·→←↵"
    assert coloured_text.visible("e\u0301") == "é"
    assert coloured_text.visible("\x00\u200b\u65e5\ud800") == "□□□□"
    assert coloured_text.visible("") == "□"
    hostile = [chr(code) for code in range(0, 0x3000, 61)]
    draw(plots.token_experts(hostile, np.zeros((len(hostile), 1), np.int32), "layer 0"))


def test_wrapping_keeps_every_character_and_breaks_at_line_ends():
    shown = ["ab", "↵", "x" * 150, "↵c↵↵d", "e"]
    pieces = coloured_text.wrap(shown, [0, 1, 2, 3, 4], columns=64)
    assert "".join(piece.text for piece in pieces) == "".join(shown)
    assert all(piece.column + len(piece.text) <= 64 for piece in pieces)
    after = [b.line > a.line for a, b in itertools.pairwise(pieces) if a.text.endswith("↵")]
    assert after == [True] * 4
    assert [piece.expert for piece in pieces] == [piece.token for piece in pieces]


def test_long_text_says_what_it_left_out():
    figure = draw(plots.token_experts(["word "] * 100, np.zeros((100, 2), np.int32), "layer 0", max_lines=2))
    assert any("and 76 more tokens" in item.get_text() for item in figure.texts)


@pytest.mark.parametrize("tokens", [[], ["a"]])
def test_tokens_and_experts_must_match(tokens: list[str]):
    with pytest.raises(UserError, match=f"{len(tokens)} tokens for 2 rows"):
        plots.token_experts(tokens, np.zeros((2, 1), np.int32), "layer 0")


# ---- bars


def test_bars_and_reference_marks():
    results = {"dense": {"a": 2.0, "b": 1.5}, "sparse": {"b": 1.25}}
    axes = draw(plots.bits_per_byte_by_domain(results, {"a": 1.9, "b": 1.8}, "byte 6-gram")).axes[0]
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    np.testing.assert_array_equal(heights, [[2.0, 1.5], [np.nan, 1.25]])
    assert [float(line.get_ydata()[0]) for line in axes.lines] == [1.9, 1.8]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["dense", "sparse", "byte 6-gram"]
    assert texts_of(axes) == ["2.000", "1.500", "1.250"]


def test_bars_edge_cases():
    assert draw(plots.bits_per_byte_by_domain({"one": {"$x_": 1.0}})).axes[0].get_legend() is None
    many = {f"model {i}": {f"a long domain name {j}": 1.0 + j for j in range(9)} for i in range(9)}
    assert not texts_of(draw(plots.bits_per_byte_by_domain(many)).axes[0])
    with pytest.raises(UserError, match="hold no domain"):
        plots.bits_per_byte_by_domain({})


def test_ladder_holds_every_number():
    rows = [
        {"name": "dense", "total_params": 1e6, "active_params": 1e6, "flops_per_token": 2e6, "bits_per_byte": 1.9},
        {"name": "large $", "total_params": 2e12, "active_params": 5e9, "flops_per_token": 1e10, "bits_per_byte": None},
    ]
    parameters, flops, quality = draw(plots.ladder(rows)).axes
    assert [bar.get_width() for bar in parameters.patches] == [1e6, 2e12, 1e6, 5e9]
    assert [bar.get_width() for bar in flops.patches] == [2e6, 1e10]
    assert quality.patches[0].get_width() == 1.9
    assert texts_of(parameters) == ["1M of 1M", "5B of 2T"]
    assert texts_of(quality) == ["1.900", "not measured"]
    assert [label.get_text() for label in parameters.get_yticklabels()] == ["dense", "large $"]
    draw(plots.ladder([{"name": "x", "total_params": 0, "active_params": 0, "flops_per_token": 0}]))


def test_ladder_names_missing_fields():
    with pytest.raises(UserError, match=r"row 0 \(a\) lacks \['active_params', 'flops_per_token'\]"):
        plots.ladder([{"name": "a", "total_params": 1}])
    with pytest.raises(UserError, match="is empty"):
        plots.ladder([])


# ---- style


def test_spread_moves_labels_apart_inside_the_axes():
    placed = style.spread(np.array([0.5, 0.5, 0.98, 1.0]), 0.1, 0.0, 1.0)
    assert (np.diff(np.sort(placed)) >= 0.1 - 1e-12).all()
    assert placed.max() <= 1.0
    np.testing.assert_array_equal(style.spread(np.array([0.9, 0.1]), 0.1, 0.0, 1.0), [0.9, 0.1])


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_save_writes_whole_files_in_the_format_of_the_name(tmp_path: Path, suffix: str):
    path = plots.save(plots.assignments([(0, 1)], 4), tmp_path / "new" / f"figure.{suffix}")
    assert path.read_bytes()[:5].lstrip(b"\x89").startswith({"png": b"PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_save_refuses_other_formats(tmp_path: Path):
    with pytest.raises(UserError, match=r"'a.bmp' must end in one of .png, .svg, .pdf"):
        plots.save(Figure(), tmp_path / "a.bmp")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = files.write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(UserError, match="file cannot be written: full"):
        files.write_atomically(path, b"new")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_figures_are_images_in_a_notebook_and_the_same_every_time():
    first, second = (plots.assignments([(0, 1)], 4)._repr_png_() for _ in range(2))
    assert first == second
    assert io.BytesIO(first).read(4) == b"\x89PNG"


def test_this_room_imports_neither_jax_nor_pyplot():
    for path in Path(plots.__file__).parent.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        assert not {name for name in names if name.split(".")[0] in ("jax", "flax") or "pyplot" in name}, path.name
