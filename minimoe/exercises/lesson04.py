"""Lesson 04, quantization: int8 weights, the power-of-two scale of MXFP4, and a gradient through rounding."""

from __future__ import annotations

from minimoe.exercises.lesson04_int8 import ABSMAX_INT8
from minimoe.exercises.lesson04_mxfp4 import MXFP4_SCALE
from minimoe.exercises.lesson04_ste import STRAIGHT_THROUGH

EXERCISES = (ABSMAX_INT8, MXFP4_SCALE, STRAIGHT_THROUGH)
