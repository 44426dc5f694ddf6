"""Lesson 02, routing: top-k with a selection bias, the sqrt-softplus affinity, and groups."""

from __future__ import annotations

from minimoe.exercises.lesson02_groups import GROUP_LIMITED
from minimoe.exercises.lesson02_sqrtsoftplus import SQRTSOFTPLUS
from minimoe.exercises.lesson02_topk import TOPK

EXERCISES = (TOPK, SQRTSOFTPLUS, GROUP_LIMITED)
