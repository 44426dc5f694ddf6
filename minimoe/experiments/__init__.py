"""The experiments behind the recorded numbers. Each is a file of its own, and each resumes.

A file says what the experiment asks, and ``runs(done)`` lists its runs, given those that are recorded already. The machinery
is in `run` (one run: trained, scored), `workplace` (where runs lie), `students` (what students of a teacher read), `scores`,
`runner` (all runs of an experiment), `records` (JSON files), `show` (as a table) and `ship` (into the package).
"""

from minimoe.experiments.records import read_record, training_speed, write_record
from minimoe.experiments.run import Learning, Run
from minimoe.experiments.runner import EXPERIMENTS, MEASUREMENTS, missing_runs, run_experiment, run_together

__all__ = [
    "EXPERIMENTS",
    "MEASUREMENTS",
    "Learning",
    "Run",
    "missing_runs",
    "read_record",
    "run_experiment",
    "run_together",
    "training_speed",
    "write_record",
]
