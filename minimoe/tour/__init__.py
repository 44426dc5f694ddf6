"""The tour: the whole story of sparse models in one run, and a page to keep.

`run` trains, quantizes and distils (`quantized`, `distilled`); `report` writes the folder; `page` says what is on the
page and `html` lays it out.
"""

from minimoe.tour.run import run_tour

__all__ = ["run_tour"]
