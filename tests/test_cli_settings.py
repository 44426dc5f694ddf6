"""Environment variables that cannot be met end every command that would fail over them, in one line, before any work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import minimoe
from minimoe.cli.settings import check_words
from minimoe.errors import UserError

ROOT = Path(minimoe.__file__).parent.parent
COMMANDS = {
    "train": ["train", "--out", "new"],
    "eval": ["eval", "nano"],
    "generate": ["generate", "nano"],
    "quantize": ["quantize", "small", "--recipe", "int8", "--out", "new"],
    "distill": ["distill", "--teacher", "small", "--student", "nano", "--out", "new"],
    "bench": ["bench", "quant"],
    "experiments": ["experiments", "run", "nano", "--work", "new"],
    "tour": ["tour", "--out", "new"],
    "exercises": ["exercises", "list"],
    "claims": ["claims"],
    "bench predict": ["bench", "predict"],
}
DRAW = ("train", "quantize", "distill", "experiments", "tour", "claims", "bench predict")


def refused(folder: Path, arguments: list[str], **environment: str) -> str:
    """What the command says, after it was seen to do nothing."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    settings |= {"PYTHONPATH": str(ROOT)} | environment
    ended = subprocess.run(
        [sys.executable, "-m", "minimoe", *arguments],
        capture_output=True,
        text=True,
        env=settings,
        check=False,
        cwd=folder,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith("minimoe: "), ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert list(folder.iterdir()) == []
    return ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_platform_that_is_not_there_ends_every_command(name, tmp_path):
    said = refused(tmp_path, COMMANDS[name], JAX_PLATFORMS="nosuch")
    assert "JAX_PLATFORMS='nosuch'" in said
    assert "unset it" in said


@pytest.mark.parametrize("value", ["cuda", "tpu", "CPU", "cpu,"])
def test_every_platform_that_fails_names_its_value(value, tmp_path):
    said = refused(tmp_path, COMMANDS["generate"], JAX_PLATFORMS=value, CUDA_VISIBLE_DEVICES="")
    assert f"JAX_PLATFORMS={value!r}" in said


def test_other_variables_of_jax_are_named_too(tmp_path):
    assert "JAX_PLATFORM_NAME='nosuch'" in refused(tmp_path, COMMANDS["eval"], JAX_PLATFORM_NAME="nosuch")
    assert "JAX_ENABLE_X64" in refused(tmp_path, COMMANDS["eval"], JAX_ENABLE_X64="maybe")


@pytest.mark.parametrize("name", DRAW)
def test_a_backend_that_is_not_there_ends_every_command_that_draws(name, tmp_path):
    said = refused(tmp_path, COMMANDS[name], MPLBACKEND="nosuch", JAX_PLATFORMS="cpu")
    assert "MPLBACKEND='nosuch'" in said
    assert "unset it" in said


@pytest.mark.parametrize("arguments", [["--help"], ["train", "-h"], ["--version"]], ids=" ".join)
def test_help_needs_nothing(arguments, tmp_path):
    settings = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "nosuch", "MPLBACKEND": "nosuch"}
    subprocess.run(
        [sys.executable, "-m", "minimoe", *arguments], env=settings, check=True, cwd=tmp_path, capture_output=True
    )


@pytest.mark.parametrize("words", [["--prompt", ""], ["--prompt="], ["--prompt", "--text="]], ids=" ".join)
def test_a_prompt_may_be_empty_or_look_like_an_empty_option(words):
    check_words(["generate", "nano", *words, "--seed", "0"])


@pytest.mark.parametrize("words", [["--text", ""], ["--text="], [""]], ids=" ".join)
def test_nothing_else_may_be_empty(words):
    with pytest.raises(UserError, match="is empty; give a value or leave it out"):
        check_words(["train", *words, "--prompt", "x"])
