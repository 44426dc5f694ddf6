"""The command line: one file a command. `main` is the entry point."""

from __future__ import annotations


def main() -> None:
    """Runs the command line; a `UserError` becomes one line on stderr and exit code 2, Ctrl-C at any time code 130."""
    import signal

    try:
        from minimoe.process import keep_memory

        keep_memory()
        from minimoe.cli.app import run
        from minimoe.console import protect_streams

        protect_streams()
        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends anyway
    except KeyboardInterrupt:  # before the command began, or again while it stopped
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = 130
    raise SystemExit(code)
