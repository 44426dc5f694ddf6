"""Claims 8, 9 and 11: chips that may be exported, chips of another maker, and what running costs. Rooflines, not runs."""

from __future__ import annotations

from minimoe.claims.row import NO_QUALITY, Row

MODEL = "deepseek-v4-flash"
CUTS = {"A800": "A100", "H800": "H100", "H20": "H100"}
TRAINED_IN = {"A100": "bf16", "A800": "bf16", "H100": "fp8", "H800": "fp8"}  # the least bits that a chip multiplies
BATCH, CONTEXT = 256, 4096
SERVED = 64  # chips that share the experts
OLD, SEQUENCES, CONTEXTS = "deepseek-v3.2", 64, (4096, 131072, 1048576)
NOT_RUN = "not measured: we have no such chip"


def restricted() -> Row:
    """Claim 8: viable on export versions."""
    from minimoe.cost import Assumptions, chip, communication_bound, decode_step, export_cut, published_model

    model, assumed = published_model(MODEL), Assumptions(chips=SERVED)
    kept = {cut: {k: v for k, v in export_cut(chip(full), chip(cut)).items() if v != 1} for cut, full in CUTS.items()}
    steps = {
        name: decode_step(model, chip(name, unverified=True), BATCH, CONTEXT, assumed)
        for name in {*CUTS, *CUTS.values()}
    }
    slower = {cut: steps[cut].seconds / steps[full].seconds for cut, full in CUTS.items()}
    pro = published_model("deepseek-v4-pro")
    hides = {name: communication_bound(pro, chip(name), kind) for name, kind in TRAINED_IN.items()}
    over_network = {name: chip(name).peak(kind) / chip(name).network for name, kind in TRAINED_IN.items()}
    offered = hides["H800"]["experts"]
    same = max(slower["A800"], slower["H800"]) < 1.05
    only_h800 = [name for name, found in hides.items() if found["chip"] > offered] == ["H800"]
    words = ", ".join(
        f"{cut} {times:.2f} times the step of {CUTS[cut]} ({steps[cut].bound_by})" for cut, times in slower.items()
    )
    return Row(
        number=8,
        id="restricted-chips",
        claim="It is viable on restricted chips, such as A800 and H800.",
        means="What the export rules cut slows down training and serving of such a model little.",
        published="kept of the full chip: "
        + "; ".join(
            f"{cut} " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
            for cut, shares in kept.items()
        )
        + f". Decoding {BATCH} sequences of V4-Flash on {SERVED} chips: {words}. FLOPs a link byte: "
        f"V4-Pro's experts offer {offered:,.0f}; to hide its sending behind computing, at data-sheet peaks, "
        + ", ".join(f"an {name} needs {found['chip']:,.0f} ({TRAINED_IN[name]})" for name, found in hides.items())
        + f". From machine to machine, where nothing was cut, the least is {min(over_network.values()):,.0f}",
        text=NO_QUALITY,
        reasoning=NO_QUALITY,
        knowledge=NO_QUALITY,
        other=NOT_RUN,
        verdict="holds when decoding waits for memory, which A800 and H800 kept; in training, inside a machine of eight "
        "chips, an A800 can still hide its slower link behind computing, an H800 in FP8 cannot, unless less is sent"
        if same and only_h800
        else "does not show here",
        not_established="Any measured time on these chips. "
        "A roofline has no kernels, no scheduler and no network that others use.",
        command="minimoe cost --model deepseek-v4-flash --hardware H100 --hardware H800 --batch 256 --assume chips=64",
        numbers={"kept": kept, "slower": slower, "hide": hides, "over_network": over_network},
    )


def huawei() -> Row:
    """Claim 9: another maker's chips."""
    return Row(
        number=9,
        id="huawei",
        claim="It runs on Huawei chips.",
        means="An Ascend runs the model, with right answers and at a useful speed.",
        published="the report says that its expert parallelism was validated on NVIDIA and on Ascend. "
        "Numbers of the Ascend 910B are marked unverified: public pages contradict each other",
        text="not testable here",
        reasoning="not testable here",
        knowledge="not testable here",
        other="three programs are lowered for cpu, cuda, rocm and tpu; "
        "ONNX, for which an Ascend runtime exists, runs on a CPU with the same greedy text; "
        "PyTorch, which has an Ascend back end, loads the weights. None was run on an Ascend",
        verdict="not testable here: our programs need nothing that one maker alone has, and nobody here has an Ascend",
        not_established="That an Ascend compiles it, answers rightly, or is fast. Lowered for a chip is not run on a chip.",
        command="minimoe export nano --format onnx --out nano-onnx; minimoe export nano --format stablehlo --out nano-hlo",
        numbers={},
    )


def cheaper() -> Row:
    """Claim 11: cheaper to operate."""
    from minimoe.cost import Assumptions, chip, published_model, quote

    h800, assumed = chip("H800"), Assumptions(chips=SERVED)
    names = (OLD, "deepseek-v4-flash", "deepseek-v4-pro")
    written = {
        context: {
            name: quote(published_model(name), h800, SEQUENCES, context, assumed)["dollars_per_million_written"]
            for name in names
        }
        for context in CONTEXTS
    }
    share = {name: [prices[name] / prices[OLD] for prices in written.values()] for name in names[1:]}
    flash, pro = share.values()
    return Row(
        number=11,
        id="cheaper",
        claim="It is cheaper to operate.",
        means="A million written tokens cost less on the same chips, other things equal.",
        published=f"{SERVED} H800, {SEQUENCES} sequences, 2 dollars a chip and hour, at best: "
        + "; ".join(
            f"at {context:,} tokens " + ", ".join(f"{name} ${price:.2f}" for name, price in prices.items())
            for context, prices in written.items()
        ),
        text=NO_QUALITY,
        reasoning=NO_QUALITY,
        knowledge=NO_QUALITY,
        other="our own models: see the ladder. V3.2 was made for 163,840 tokens: beyond them its price is a formula's",
        verdict="holds"
        if max(*flash, *pro) < 1
        else "holds when Flash is meant: V4-Pro reads more weights than V3.2 and less cache, "
        f"which makes it cheaper at {CONTEXTS[-1]:,} tokens alone, by {1 - pro[-1]:.0%}"
        if max(flash) < 1 and pro[-1] < 1
        else "does not show here",
        not_established="What anybody charges or pays: "
        "a roofline is a lower bound, and every price in it is an assumption that the command can change.",
        command="minimoe cost --model deepseek-v4-pro --against deepseek-v3.2 --hardware H800 --batch 64 --assume chips=64",
        numbers={"dollars": written, "over_v32": share},
    )
