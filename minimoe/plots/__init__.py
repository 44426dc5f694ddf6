"""One function for each figure: it takes plain values and returns a matplotlib `Figure`.

Nothing here draws on a screen or needs JAX.

- `training_curve`, `compare_runs`: learning curves from the records of runs;
- `experts_by_domain`, `balance_over_time`, `token_experts`: where tokens go;
- `bits_per_byte_by_domain`, `ladder`, `bytes_by_part`: finished models side by side;
- `assignments`, `parameter_parts`, `active_and_total`, `experts_read`, `time_per_token`, `costs_side_by_side`: what
  sparsity buys and costs;
- `moe_layer`: a drawing of one layer;
- `score_functions`, `choices`, `changed_outputs`, `expert_and_token`, `damage_by_use`, `dispatch_clocks`: how tokens are
  scored and routed, and at what price;
- `load_film`, `over_steps`, `loss_ranges`, `before_and_after`, `choices_under_bias`, `paired_gaps`: how balance comes
  and goes, and what it is worth;
- `next_words`, `temperatures`, `two_modes`: what a teacher tells a student, and what a student can make of it;
- `gap_closed`, `exact_match_by_level`: how far distillation takes a student;
- `bytes_against_context`, `bytes_per_token`, `recall_by_distance`, `what_queries_see`: what attention keeps of the past;
- `roofline`, `step_parts`, `rows_between`: what hardware allows, what a step waits for, what devices send each other;
- `collectives`: what devices send in a step, counted and by formula;
- `predicted_times`: what a roofline says of our models, against the clock;
- `rungs`: the efficiency ladder, each quantity as multiples of its first rung;
- `verdict`: the closing box of a lesson, for one claim;
- `seeds`, `curves_with_spread`, `gaps_over_tokens`: runs that differ in their seed alone;
- `numbers` and `quantization` (from `rounding` and `recipes`), modules to be imported by name: number formats, what
  rounding does, and what smaller models lose;
- `save`, `png_bytes`: the file, or its bytes.
"""

from __future__ import annotations

from minimoe.plots.affinities import choices, score_functions
from minimoe.plots.balancing import (
    before_and_after,
    choices_under_bias,
    load_film,
    loss_ranges,
    over_steps,
    paired_gaps,
)
from minimoe.plots.caches import bytes_against_context, bytes_per_token, recall_by_distance, what_queries_see
from minimoe.plots.collectives import collectives
from minimoe.plots.coloured_text import token_experts
from minimoe.plots.curves import compare_runs, training_curve
from minimoe.plots.diagram import moe_layer
from minimoe.plots.dispatch import changed_outputs, damage_by_use, dispatch_clocks, expert_and_token
from minimoe.plots.distillation import next_words, temperatures, two_modes
from minimoe.plots.finished_models import bits_per_byte_by_domain, ladder
from minimoe.plots.model_bytes import bytes_by_part
from minimoe.plots.predicted import predicted_times
from minimoe.plots.roofs import roofline, rows_between, step_parts
from minimoe.plots.routing import balance_over_time, experts_by_domain
from minimoe.plots.rungs import rungs
from minimoe.plots.seed_spread import curves_with_spread, gaps_over_tokens, seeds
from minimoe.plots.sparse import (
    active_and_total,
    assignments,
    costs_side_by_side,
    experts_read,
    parameter_parts,
    time_per_token,
)
from minimoe.plots.style import png_bytes, save
from minimoe.plots.toward_teacher import exact_match_by_level, gap_closed
from minimoe.plots.verdict import verdict

__all__ = [
    "active_and_total",
    "assignments",
    "balance_over_time",
    "before_and_after",
    "bits_per_byte_by_domain",
    "bytes_against_context",
    "bytes_by_part",
    "bytes_per_token",
    "changed_outputs",
    "choices",
    "choices_under_bias",
    "collectives",
    "compare_runs",
    "costs_side_by_side",
    "curves_with_spread",
    "damage_by_use",
    "dispatch_clocks",
    "exact_match_by_level",
    "expert_and_token",
    "experts_by_domain",
    "experts_read",
    "gap_closed",
    "gaps_over_tokens",
    "ladder",
    "load_film",
    "loss_ranges",
    "moe_layer",
    "next_words",
    "over_steps",
    "paired_gaps",
    "parameter_parts",
    "png_bytes",
    "predicted_times",
    "recall_by_distance",
    "roofline",
    "rows_between",
    "rungs",
    "save",
    "score_functions",
    "seeds",
    "step_parts",
    "temperatures",
    "time_per_token",
    "token_experts",
    "training_curve",
    "two_modes",
    "verdict",
    "what_queries_see",
]
