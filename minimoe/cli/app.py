"""The Typer application, and how errors leave it."""

from __future__ import annotations

import functools
import sys
import traceback
from typing import Annotated, Any

import typer

from minimoe import __version__
from minimoe.cli import (
    bench,
    claims,
    cost,
    distill,
    doctor,
    evaluate,
    exercises,
    experiments,
    export,
    generate,
    lab,
    microscope,
    quantize,
    tour,
    train,
)
from minimoe.cli.settings import check_settings, check_words
from minimoe.console import messages, silence, write_out
from minimoe.errors import UserError

app = typer.Typer(
    name="minimoe",
    help="Efficient Mixture-of-Experts models, small enough to read. Don't trust the headline, run it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("tour")(tour.tour)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("quantize")(quantize.quantize)
app.command("distill")(distill.distill)
app.command("microscope")(microscope.microscope)
app.command("export")(export.export)
app.command("import")(export.import_)
app.command("cost")(cost.cost)
app.command("claims")(claims.claims)
app.command("notebooks")(lab.notebooks)
app.command("lab")(lab.lab)
app.command("doctor")(doctor.doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(experiments.app, name="experiments")
app.add_typer(exercises.app, name="exercises")


def _print_version(wanted: bool | None) -> None:
    if wanted:
        write_out(f"minimoe {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """Efficient Mixture-of-Experts models, small enough to read. Don't trust the headline, run it."""


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for a mistake that can be repaired, 130 after Ctrl-C."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        check_words(words)
        check_settings(words)
        code = _command()(arguments, standalone_mode=False)
    except UserError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        messages.print("stopped")
        return 130
    except (BrokenPipeError, SystemExit):  # Typer's end when the reader of a help text went away, as `head` does
        silence("stdout")
        return 0
    except OSError as error:
        if traceback.extract_tb(error.__traceback__)[-1].name != "echo":  # by which Typer writes help texts
            raise
        silence("stdout")
        return _complain(f"the output cannot be written ({error.strerror}); make room or send it elsewhere")
    except Exception as error:
        # Typer's usage errors: click's own classes in older versions, a copy of them in newer ones.
        if not hasattr(error, "format_message"):
            raise
        return _complain(f"{error.format_message()} See --help.")
    return code if isinstance(code, int) else 0


@functools.cache
def _command() -> Any:
    """All commands with their options, built once a process: Typer would read every signature again for every command."""
    return typer.main.get_command(app)


def _complain(message: str) -> int:
    messages.print(f"minimoe: {' '.join(message.split())}")
    return 2
