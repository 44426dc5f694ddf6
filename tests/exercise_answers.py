"""Answers to the exercises: right ones written differently, and wrong ones with the mistake that each must be told.

These are the only solutions in the repository; the package holds oracles in NumPy, loops that neither trace nor have a
gradient. Each lesson's are in a file of their own, `exercise_answers_01` to `exercise_answers_09`. ``RIGHT[id]`` is a
list of functions; ``WRONG[id]`` a list of (function, name of the mistake or, for what no name covers, ``aspect:...``).
"""

from __future__ import annotations

import exercise_answers_01
import exercise_answers_02
import exercise_answers_03
import exercise_answers_04
import exercise_answers_05
import exercise_answers_06
import exercise_answers_07
import exercise_answers_08
import exercise_answers_09

LESSONS = (
    exercise_answers_01,
    exercise_answers_02,
    exercise_answers_03,
    exercise_answers_04,
    exercise_answers_05,
    exercise_answers_06,
    exercise_answers_07,
    exercise_answers_08,
    exercise_answers_09,
)

RIGHT = {id: answers for lesson in LESSONS for id, answers in lesson.RIGHT.items()}
WRONG = {id: answers for lesson in LESSONS for id, answers in lesson.WRONG.items()}
