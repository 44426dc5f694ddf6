"""Timing against others: contestants take turns in one process, and a number is a ratio within one run.

`alternate` and `ratio` time anything. One file a benchmark: `moe`, `train`, `decode`, `context`, `attention`, `quant`;
`mixtral` and `deepseek_v4` are the references of Transformers with the same weights, `sizes` says what can be measured.
Each ``measure`` returns plain values, which `minimoe bench` prints.
"""

from minimoe.bench.timing import Timing, alternate, environment, ratio

__all__ = ["Timing", "alternate", "environment", "ratio"]
