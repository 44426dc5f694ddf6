"""What can be measured: shapes as text, models by name, and the refusal of impossible sizes; JAX is not loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.config import ModelConfig

MOE_AXES, ATTENTION_AXES, QUANT_AXES = "T,D,F,E,K", "B,L,N,M,H", "T,I,O"
MOE_SHAPES = ["2048,256,512,16,2", "4096,256,256,32,4", "1024,512,1024,8,2"]
ATTENTION_SHAPES = ["8,256,8,4,32"]
CONTEXTS = [256, 1024, 4096]
DEFAULT_CONFIG, V4_CONFIG, LARGE_CONFIG = "mixtral-21m", "v4-22m", "random-300m"


def parse_shape(text: str, axes: str) -> dict[str, int]:
    """``"8,4"`` with axes ``"T,D"`` -> ``{"T": 8, "D": 4}``.

    Raises:
      UserError: unless there is one whole number of at least 1 an axis.
    """
    names, parts = axes.split(","), text.split(",")
    if len(parts) != len(names) or not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise UserError(f"--shape {text!r} must be {len(names)} whole numbers of at least 1: {axes}")
    return dict(zip(names, map(int, parts), strict=True))


def check_moe(sizes: dict[str, int], dispatches: Sequence[str], loads: Sequence[str], memory: str) -> None:
    """Refuses impossible sizes, unknown dispatches, loads and situations before anything runs."""
    from minimoe.config import MoEConfig

    for name in dispatches:
        MoEConfig(sizes["D"], sizes["F"], sizes["E"], sizes["K"], dispatch=name)
    if sizes["E"] > sizes["D"]:
        raise UserError(f"--shape: E={sizes['E']} must be at most D={sizes['D']}: a feature chooses each expert")
    for load in loads:
        if load != "all" and not (load.replace(".", "", 1).isdecimal() and float(load) <= 1):
            raise UserError(f"--load {load!r} must be a MaxVio from 0 to 1, or all")
    if memory not in ("kept", "returned", "both"):
        raise UserError(f"--memory {memory!r} must be kept, returned or both")


def check_dispatch(
    shapes: Sequence[dict[str, int]], configs: dict[str, ModelConfig], dispatches: Sequence[str], dtypes: Sequence[str]
) -> None:
    """Refuses impossible sizes, unknown dispatches and number formats, and models without experts."""
    for sizes in shapes:
        check_moe(sizes, dispatches, ["0.25"], "kept")
    for name, config in configs.items():
        if config.moe is None:
            raise UserError(f"--config {name!r} has no experts to be reached; choose a sparse one")
    for dtype in dtypes:
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"--dtype {dtype!r} must be float32 or bfloat16")


def check_attention(sizes: dict[str, int]) -> None:
    if sizes["N"] % sizes["M"]:
        raise UserError(f"--shape: N={sizes['N']} query heads must be a multiple of M={sizes['M']} key/value heads")


def check_fits(config: ModelConfig, tokens: int, what: str) -> None:
    if tokens > config.context_length:
        raise UserError(f"{what} is {tokens} tokens, above context_length={config.context_length}; use fewer")


def named_config(name: str) -> ModelConfig:
    """A preset, or one of the benchmarks' own: the shapes of Mixtral and DeepSeek-V4, the large one."""
    from minimoe.bench.models import MIXTRAL_21M, RANDOM_300M, V4_22M
    from minimoe.config import PRESETS

    known = {DEFAULT_CONFIG: MIXTRAL_21M, V4_CONFIG: V4_22M} | PRESETS
    if name not in known | {LARGE_CONFIG: RANDOM_300M}:
        raise UserError(f"--config {name!r} is not known; choose one of {', '.join(known)}")
    return RANDOM_300M if name == LARGE_CONFIG else known[name]
