"""The graders against answers that a machine made wrong; `mutants` says how."""

from __future__ import annotations

import pytest
from mutants import EQUIVALENT, tally

from minimoe.exercises.registry import CATALOGUE


@pytest.mark.parametrize("id", list(CATALOGUE))
def test_every_mutant_is_told_from_the_right_answer(id):
    found = tally(CATALOGUE[id])
    assert found.survivors == [], "write a case that tells them apart, or say in EQUIVALENT why none can"
    assert found.mutants > 10
    used = set(found.equivalent.values())
    assert used == {reason for _, reason in EQUIVALENT.get(id, ())}, "a reason that no mutant needs"
