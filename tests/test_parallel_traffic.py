"""Bytes between devices: each collective by hand, loops apart, the figure, and V4's condition for each chip."""

from __future__ import annotations

import pytest
from drawing import draw

from minimoe import MoEConfig, UserError
from minimoe.cost import chip, communication_bound, published_model
from minimoe.parallel import collective_bytes, exchange_bytes
from minimoe.plots import collectives

# Two groups of four devices; the result of each is [16] float32, 64 bytes, except where it is said.
PROGRAM = """HloModule step

%turn (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s = f32[16]{0} all-to-all(%x), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

ENTRY %main (a: f32[16]) -> f32[16] {
  %w = (s32[], f32[16]{0}) while(%t), condition=%test, body=%turn
  %a = (f32[8]{0}, f32[8]{0}) all-to-all(%x, %y), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  %b = f32[16]{0} all-gather(%x), channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}
  %c = bf16[32]{0} reduce-scatter(%x), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  %d = f32[4,4]{1,0} all-reduce(%x), channel_id=4, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %f = f32[2]{0} all-reduce(%x), channel_id=6, replica_groups=mesh['a'=4,'b'=2] {'a':(2)2,'b'}, to_apply=%add
  %e = f32[16]{0} collective-permute(%x), channel_id=5, source_target_pairs={{0,1},{1,0}}
}
"""


def test_each_collective_by_hand():
    assert collective_bytes(PROGRAM) == {
        "all-to-all": 48.0,
        "all-gather": 48.0,
        "reduce-scatter": 192.0,
        "all-reduce": 96.0 + 12.0,  # of 8 bytes, among 2 * 2 devices
        "collective-permute": 64.0,
    }


def test_loops_are_counted_apart():
    turn = collective_bytes(PROGRAM, loops=True)
    assert turn["all-to-all"] == 48.0
    assert sum(turn.values()) == 48.0


def test_the_formula_by_hand():
    """Room for all: 7 devices get 8 rows each. Out and back 64 numbers; 2 ids and weights; the same backwards, no ids."""
    config = MoEConfig(64, 8, 16, 2)
    rows = 7 * 8
    assert exchange_bytes(config, 8, 8, backward=False) == rows * (2 * 64 * 4 + 2 * (4 + 4))
    assert exchange_bytes(config, 8, 8) == rows * (4 * 64 * 4 + 2 * (4 + 4 + 4))
    assert exchange_bytes(config, 1, 8) == 0


def test_a_group_limit_halves_the_rows():
    """Two of eight groups, one a device: at most 2 devices a token, against 3.47 of free choice."""
    sizes = {"d_model": 64, "d_expert": 8, "num_experts": 32, "top_k": 4}
    limited = MoEConfig(**sizes, select="group_limited", num_groups=8, top_k_groups=2)
    assert exchange_bytes(limited, 8, 4096) < 0.6 * exchange_bytes(MoEConfig(**sizes), 8, 4096)


def test_experts_that_choose_send_ids_and_weights_of_all_experts():
    """Every token may go to every device, with E ids and E weights: all by hand."""
    config = MoEConfig(d_model=64, d_expert=64, num_experts=32, top_k=2, select="expert_choice")
    there, back, ids, weights = 64 * 4, 64 * 4, 32 * 4, 32 * 4
    assert exchange_bytes(config, 8, 512) == 7 * 512 * (2 * (there + back) + ids + 2 * weights)


@pytest.mark.parametrize(
    ("devices", "tokens", "words"),
    [(64, 512, "devices=64"), (3, 512, "devices=3 does not divide num_experts=32"), (0, 512, "devices=0"),
     (8, -1, "tokens=-1")],
)  # fmt: skip
def test_an_exchange_that_no_mesh_has_is_refused(devices, tokens, words):
    with pytest.raises(UserError, match=words):
        exchange_bytes(MoEConfig(d_model=64, d_expert=64, num_experts=32, top_k=4), devices, tokens)


def test_v4_hides_its_rows_behind_its_experts_where_a_chip_has_fewer_flops_a_byte():
    """DeepSeek-V4's condition: at most 6,144 FLOPs a link byte. The export cut of the link is what breaks it."""
    model = published_model("deepseek-v4-pro")
    holds = {name: communication_bound(model, chip(name), "bf16") for name in ("A100", "A800", "H100", "H800", "H20")}
    assert {bound["experts"] for bound in holds.values()} == {6144.0}
    assert holds["H800"]["chip"] > holds["H100"]["chip"]
    assert holds["A800"]["chip"] > holds["A100"]["chip"]
    assert [name for name, bound in holds.items() if bound["chip"] <= bound["experts"]] == list(holds)
    assert communication_bound(model, chip("H800"), "fp8")["chip"] > 6144.0


def test_the_figure_holds_its_numbers():
    counted = {"free choice": collective_bytes(PROGRAM), "2 of 8 groups": collective_bytes("")}
    axes = draw(collectives(counted, {"free choice": 40.0, "2 of 8 groups": 0.0})).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[::2] == list(counted["free choice"].values())
    assert list(axes.lines[0].get_xdata()) == [40.0, 0.0]


def test_a_figure_without_a_formula_is_refused():
    with pytest.raises(UserError, match="must name the same layouts"):
        collectives({"one": collective_bytes("")}, {})
