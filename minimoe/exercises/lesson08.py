"""Lesson 08, hardware: a roofline, the bytes of a decoding step, and the rows that experts on several devices receive."""

from __future__ import annotations

from minimoe.exercises.lesson08_bytes import STEP_BYTES
from minimoe.exercises.lesson08_roofline import ROOFLINE
from minimoe.exercises.lesson08_rows import ROWS_SENT

EXERCISES = (ROOFLINE, STEP_BYTES, ROWS_SENT)
