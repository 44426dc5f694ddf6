"""The figure of `minimoe quantize`: parts of a model and their bytes."""

from __future__ import annotations

import pytest
from flax import nnx

from minimoe import MoETransformer, UserError, plots
from minimoe.plots.model_bytes import OTHER, PARTS, part_of
from minimoe.quant.report import size_report


def test_every_array_of_a_model_has_a_part(tiny_config):
    models = (tiny_config.replace(tie_embeddings=False), tiny_config.dense_equivalent())
    paths = [row.path for config in models for row in size_report(MoETransformer(config, rngs=nnx.Rngs(0))).rows]
    assert {part_of(path) for path in paths} == {name for name, _ in PARTS}
    assert part_of("nose") == OTHER


def test_bars_are_sums_by_part():
    forms = {"bfloat16": {"embed.embedding": 600, "layers.0.ffn.experts.down": 3000, "layers.1.ffn.experts.down": 1000}}
    forms["v4"] = {"embed.embedding": 600, "layers.0.ffn.experts.down": 900}
    figure = plots.bytes_by_part(forms)
    (axes,) = figure.axes
    assert [[bar.get_width() for bar in bars] for bars in axes.containers] == [[600, 4000], [600, 900]]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["bfloat16, 4.6 kB", "v4, 1.5 kB"]
    assert plots.png_bytes(figure).startswith(b"\x89PNG")


def test_nothing_to_draw_is_refused():
    for nothing in ({}, {"v4": {}}):
        with pytest.raises(UserError, match="hold no array"):
            plots.bytes_by_part(nothing)


def test_forms_differ_in_more_than_colour():
    figure = plots.bytes_by_part({name: {"embed.embedding": 600} for name in ("bfloat16", "int8", "fp8", "v4")})
    hatches = [bars[0].get_hatch() for bars in figure.axes[0].containers]
    assert len(set(hatches)) == 4
