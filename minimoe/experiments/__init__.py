"""The experiments behind the recorded numbers, and their records."""

from minimoe.experiments.records import read_record, training_speed, write_record

__all__ = ["read_record", "training_speed", "write_record"]
