"""One way for all tests of figures to draw them."""

from __future__ import annotations

from matplotlib.figure import Figure


def draw(figure: Figure) -> Figure:
    """Lays the figure out and visits everything in it, without making pixels.

    Layout, missing glyphs and mathematical text fail or warn only here, and warnings are errors. That the pixels of a
    figure become a PNG is what tests of `plots.save` and of notebooks check in test_plots.py.
    """
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure
