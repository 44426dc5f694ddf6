"""A save or a restore that fails is reported once: by its exception, and not again by each array that was under way."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

from minimoe.files import disk_error


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Keeps Orbax's late reports of a failure from the terminal.

    Orbax writes and reads many arrays at a time. When one fails, Orbax raises and closes its event loop; the others end
    later, and each prints a traceback because the loop is closed, or because nobody asked for its exception. They end in
    threads of their own, so after a failure the silence stays for the rest of the process. Other errors are reported as
    before.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")

    def report(late: sys.UnraisableHookArgs) -> None:
        if str(late.exc_value) != "Event loop is closed":
            hook(late)

    def is_other(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or disk_error(error) is None

    sys.unraisablehook = report
    logger.addFilter(is_other)
    filters = list(warnings.filters)
    # an array whose turn had not come: its coroutine is dropped, and Python says so when the process ends
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    yield
    warnings.filters[:] = filters  # type: ignore[index]
    sys.unraisablehook = hook
    logger.removeFilter(is_other)
