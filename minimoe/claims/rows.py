"""All rows of the ledger, in the order of the claims."""

from __future__ import annotations

from minimoe.claims import bits, caches, chips, rungs, sparse, students, weights
from minimoe.claims.row import Row

ROWS = (
    sparse.active,
    sparse.tflops,
    sparse.routing,
    sparse.balance,
    bits.eight_bits,
    bits.four_bits,
    students.distillation,
    caches.smaller_cache,
    caches.cache_quality,
    caches.cache_flops,
    chips.restricted,
    chips.huawei,
    weights.open_weights,
    chips.cheaper,
    students.rivals,
    students.black_box,
    rungs.most_with_least,
)


def ledger() -> dict[str, Row]:
    """Every row by its name, made from records, configs and the files of the package; nothing is trained or run.

    Example:
      >>> from minimoe.claims import ledger
      >>> rows = ledger()
      >>> rows["huawei"].answer, len({row.number for row in rows.values()})
      ('not testable here', 13)
    """
    return {row.id: row for make in ROWS for row in [make()]}
