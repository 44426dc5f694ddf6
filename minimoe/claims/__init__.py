"""The ledger: each claim of the press, its exact meaning, what holds at published sizes and in our models, and where not.

`row` says what a row is, `evidence` reads numbers from the records of experiments, `sparse`, `bits`, `students`, `caches`,
`chips` and `weights` make them, `rows` has them all, `again` measures anew, `page` writes them, `rungs` is the last claim
as one table.

    from minimoe.claims import ledger, ladder

    ledger()["tflops"].verdict     # rows by their name
    ladder()                       # rungs from the dense float32 model to the exported one
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimoe.lazy import lazy_names

if TYPE_CHECKING:
    from minimoe.claims.again import measure
    from minimoe.claims.row import Row
    from minimoe.claims.rows import ledger
    from minimoe.claims.rungs import Rung, ladder

__all__ = ["Row", "Rung", "ladder", "ledger", "measure"]

# Loaded on first use: what measures anew needs much more than what reads the records.
__getattr__, __dir__ = lazy_names(
    __name__, {"row": "Row", "rungs": "Rung ladder", "rows": "ledger", "again": "measure"}
)
