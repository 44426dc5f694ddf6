"""The reading path of README.md: its files exist, and are as long as it says."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Lines that are not empty, no comment and no docstring."""
    text = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - docstrings)


def test_the_reading_path_is_as_long_as_printed():
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("### The reading path")[2].partition("\n## ")[0]
    )
    files = [ROOT / name for name in re.findall(r"^\| \d+ \| \[`[^`]+`\]\(([^)]+)\)", section, re.MULTILINE)]
    assert len(files) > 12
    assert [path for path in files if not path.is_file()] == []
    said = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:lines|of them code)", section)]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert said == [lines, sum(map(code_lines, files))], "update the two numbers in README.md"
