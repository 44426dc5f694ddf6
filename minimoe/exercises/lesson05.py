"""Lesson 05, distillation: soft targets at a temperature, a teacher cached as its best words, and the student's own text."""

from __future__ import annotations

from minimoe.exercises.lesson05_kd import SOFT_TARGETS
from minimoe.exercises.lesson05_on_policy import ON_POLICY
from minimoe.exercises.lesson05_topk import TOP_K_TEACHER

EXERCISES = (SOFT_TARGETS, TOP_K_TEACHER, ON_POLICY)
