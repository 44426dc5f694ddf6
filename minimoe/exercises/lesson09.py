"""Lesson 09, the ladder: whether an effect is shown, which models nothing else beats, and what a million tokens cost."""

from __future__ import annotations

from minimoe.exercises.lesson09_frontier import FRONTIER
from minimoe.exercises.lesson09_price import PRICE
from minimoe.exercises.lesson09_shown import SHOWN

EXERCISES = (SHOWN, FRONTIER, PRICE)
