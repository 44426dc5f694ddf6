"""The command line: one file a command. `main` is the entry point."""

from __future__ import annotations


def main() -> None:
    """Runs the command line; a `UserError` becomes one line on stderr and exit code 2."""
    from minimoe.process import keep_memory

    keep_memory()
    from minimoe.cli.app import run
    from minimoe.console import protect_streams

    protect_streams()
    raise SystemExit(run())
