"""One function a figure: plain values in, a matplotlib `Figure` out. Nothing here draws on a screen or needs JAX.

- `training_curve`, `compare_runs`: learning curves from the records of runs;
- `experts_by_domain`, `balance_over_time`, `load_bars`, `token_experts`: where tokens go;
- `bits_per_byte_by_domain`, `ladder`: finished models side by side;
- `save`, `png_bytes`: the file, or its bytes.
"""

from __future__ import annotations

from minimoe.plots.bars import bits_per_byte_by_domain, ladder
from minimoe.plots.curves import compare_runs, training_curve
from minimoe.plots.routing import balance_over_time, experts_by_domain, load_bars
from minimoe.plots.style import png_bytes, save
from minimoe.plots.text import token_experts

__all__ = [
    "balance_over_time",
    "bits_per_byte_by_domain",
    "compare_runs",
    "experts_by_domain",
    "ladder",
    "load_bars",
    "png_bytes",
    "save",
    "token_experts",
    "training_curve",
]
