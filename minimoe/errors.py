"""The one exception that the command line turns into a single line and exit code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something the caller can repair: a wrong name, an impossible setting, a broken file.

    The message is one line that names the value and the repair, so it can be shown without a traceback.
    It is a ``ValueError``, so library code may catch it as such.
    """
