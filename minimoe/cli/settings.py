"""The words of a command, and what the environment asks of JAX and Matplotlib, looked at before the command works."""

from __future__ import annotations

import os
from collections.abc import Sequence

from minimoe.errors import UserError

PLATFORM = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
HARMLESS = "cpu"  # every JAX has it
DRAWING = ("train", "distill", "quantize", "tour", "experiments", "claims", "bench predict")  # they load Matplotlib
FOR_HELP = ("-h", "--help", "--version")
MAY_BE_EMPTY = ("--prompt",)


def check_words(arguments: Sequence[str]) -> None:
    """Refuses an empty argument, as a variable of the shell gives that is not set: as a path it is the current folder.

    Args:
      arguments: of the command line, without the name of the program.

    Raises:
      UserError: naming what stands before it.

    Example:
      >>> check_words(["generate", "runs/nano", "--prompt", ""])
      >>> check_words(["train", "--text", "", "--out", "runs/mine"])
      Traceback (most recent call last):
      minimoe.errors.UserError: the argument after --text is empty; give a value or leave it out
    """
    before = ""
    for word in arguments:
        name = word[:-1] if word.startswith("--") and word.endswith("=") else before
        if word in ("", f"{name}=") and before not in MAY_BE_EMPTY and name not in MAY_BE_EMPTY:
            raise UserError(f"the argument after {name or 'minimoe'} is empty; give a value or leave it out")
        before = word


def check_settings(arguments: Sequence[str]) -> None:
    """Refuses environment variables that would end a command later, in the middle of its work.

    Help texts pass, since they need neither JAX nor Matplotlib.

    Args:
      arguments: of the command line, without the name of the program.

    Raises:
      UserError: naming the variable and its value.
    """
    if not arguments or any(word in FOR_HELP for word in arguments):
        return
    if any(name.startswith("JAX_") and value != HARMLESS for name, value in os.environ.items()):
        _check_jax()
    if {arguments[0], " ".join(arguments[:2])} & {*DRAWING} and os.environ.get("MPLBACKEND"):
        _check_matplotlib()


def _check_jax() -> None:
    try:
        import jax
    except ValueError as error:  # a switch that is neither on nor off
        raise UserError(f"JAX refuses an environment variable: {error}; correct it or unset it") from error
    asked = {name: os.environ[name] for name in PLATFORM if os.environ.get(name, HARMLESS) not in ("", HARMLESS)}
    if not asked:
        return
    try:
        jax.devices()
    except Exception as error:  # RuntimeError; for CUDA without its plug-in, AssertionError
        values = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        raise UserError(
            f"{values}: JAX finds no such device here; unset it to take what is there, or install the JAX of that platform"
        ) from error


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ValueError as error:
        raise UserError(
            f"MPLBACKEND={os.environ['MPLBACKEND']!r} is no backend of Matplotlib; unset it, pictures go to files anyway"
        ) from error
