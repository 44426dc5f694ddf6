"""The box at the end of a lesson says one of three things, and is a table of two columns whatever its texts hold."""

from __future__ import annotations

import pytest

from minimoe import plots
from minimoe.errors import UserError

TEXTS = {"claim": "A | b", "means": "two\nlines", "measured": "0.1", "would_change": "0.2"}


@pytest.mark.parametrize(
    "says",
    ["holds", "holds when it is long: short text shows nothing", "does not show here", "not testable here: no chip"],
)
def test_a_verdict_is_a_table_of_two_columns(says: str):
    lines = plots.verdict(**TEXTS, says=says)._repr_markdown_().splitlines()
    assert lines[1] == "| --- | --- |"
    assert len(lines) == 6
    assert lines[0] == "| The claim | A \\| b |"
    assert "| two lines |" in lines[2]
    assert lines[4].endswith(f"**{says}** |")


def test_another_verdict_is_refused():
    with pytest.raises(UserError, match=r"says='perhaps' must start with one of 'holds'"):
        plots.verdict(**TEXTS, says="perhaps")
    with pytest.raises(UserError, match="means must not be empty"):
        plots.verdict(**TEXTS | {"means": " "}, says="holds")
