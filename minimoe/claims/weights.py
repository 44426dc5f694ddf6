"""Claim 10: open weights. What is in the package, and who else can read it."""

from __future__ import annotations

from minimoe.claims.row import NO_QUALITY, Row


def open_weights() -> Row:
    """Claim 10: the files of the package, by their own words."""
    from minimoe.hub import shipped
    from minimoe.hub.pretrained import WEIGHTS, recorded_quality

    sizes = {name: (WEIGHTS / name / "model.safetensors").stat().st_size for name in shipped()}
    bits = {name: recorded_quality(name)["full"] for name in shipped()}
    return Row(
        number=10,
        id="open-weights",
        claim="Open-weight.",
        means="Everybody can download the numbers, and a program by somebody else can run them.",
        published="V4-Flash is published in 46 files, V4-Pro in 64, under the MIT licence; "
        "they were not loaded here, they do not fit",
        text=f"bits per byte of the {len(bits)} models in the package, as stored: "
        + ", ".join(f"{name} {value:.3f}" for name, value in bits.items()),
        reasoning=NO_QUALITY,
        knowledge=NO_QUALITY,
        other=f"{sum(sizes.values()) / 1e6:.0f} MB of safetensors. "
        "Written in the layout of Transformers and read back, every number is the same; "
        "Transformers, ONNX Runtime and llama.cpp give the same logits up to rounding (the tests compare them)",
        verdict="holds for the numbers of our files, which other programs read; those of V4 were not tried, and its data "
        "and recipe are not open",
        not_established="That a published V4 loads here, or that weights without data and recipe can be made again.",
        command="minimoe export small --out small-hf; pytest tests/test_hub_write.py",
        numbers={"file_bytes": sizes, "bits_per_byte": bits},
    )
