"""Lesson 06, the cache: what it weighs, what a query sees of it, and the pooling that makes an entry of many tokens."""

from __future__ import annotations

from minimoe.exercises.lesson06_bytes import CACHE_BYTES
from minimoe.exercises.lesson06_compress import COMPRESS
from minimoe.exercises.lesson06_visible import VISIBLE

EXERCISES = (CACHE_BYTES, VISIBLE, COMPRESS)
