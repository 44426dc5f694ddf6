"""Lesson 03, load balancing: the Switch loss for any K, the same by sequence, and the loss-free bias."""

from __future__ import annotations

from minimoe.exercises.lesson03_bias import BIAS_UPDATE
from minimoe.exercises.lesson03_sequence import SEQUENCE_LOSS
from minimoe.exercises.lesson03_switch import SWITCH_LOSS

EXERCISES = (SWITCH_LOSS, SEQUENCE_LOSS, BIAS_UPDATE)
