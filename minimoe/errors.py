"""The one exception that the command line turns into a single line and exit code 2."""

from __future__ import annotations

LONGEST_MESSAGE = 2000  # characters


class UserError(ValueError):
    r"""Something the caller can repair: a wrong name, an impossible setting, a broken file.

    The message is one line that names the value and the repair, so it can be shown without a traceback.
    It is a ``ValueError``, so library code may catch it as such.

    Names out of a damaged file may hold anything. Line ends become spaces, what a terminal would obey or refuse is shown
    as its escape, and of a message over 2,000 characters the middle is left out: the repair is at the end.

    Example:
      >>> print(UserError("no tensor 'a\nb\x1b[31m'"))
      no tensor 'a b\x1b[31m'
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2 - 10
            text = f"{text[:half]} [...] {text[-half:]}"
        return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character in "\t\n\r\v\f" else character.encode("unicode_escape").decode("ascii")
