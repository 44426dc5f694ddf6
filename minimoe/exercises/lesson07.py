"""Lesson 07, open weights: a tensor out of a file, published FP8 blocks, and the plan of several files."""

from __future__ import annotations

from minimoe.exercises.lesson07_blocks import BLOCKS
from minimoe.exercises.lesson07_shards import SHARDS
from minimoe.exercises.lesson07_tensor import TENSOR

EXERCISES = (TENSOR, BLOCKS, SHARDS)
