"""Lesson 01, sparse models: counting parameters, the dense twin, and the layer itself."""

from __future__ import annotations

from minimoe.exercises.lesson01_forward import MOE_FORWARD
from minimoe.exercises.lesson01_params import PARAMS
from minimoe.exercises.lesson01_width import DENSE_WIDTH

EXERCISES = (PARAMS, DENSE_WIDTH, MOE_FORWARD)
