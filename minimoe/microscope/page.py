"""The page: header, weights, code and style in one HTML file."""

from __future__ import annotations

import base64
import html
import json
import os
from importlib import resources
from pathlib import Path

from minimoe.data import Tokenizer, check_vocabulary, documents, evaluation_documents
from minimoe.errors import UserError
from minimoe.files import named_path, write_atomically
from minimoe.microscope.pack import pack_model, pack_tokenizer
from minimoe.model import MoETransformer

SCRIPTS = ("tokenizer.js", "model.js", "view.js")
SAMPLE_CHARACTERS = 600


def write_page(path: str | os.PathLike[str], model: MoETransformer, tokenizer: Tokenizer, *, name: str) -> Path:
    """Writes the page, all or nothing, over an earlier one.

    Args:
      path: of the page. model, tokenizer: what it runs; see `minimoe.microscope.pack`.
      name: of the model, as the page calls it.

    Returns:
      The path written.

    Raises:
      UserError: for a model that the page cannot compute; if ``path`` is a folder or cannot be written.
    """
    path = named_path(path)
    check_page_path(path)
    return write_atomically(path, build_page(model, tokenizer, name=name))


def check_page_path(path: Path) -> None:
    """Refuses to replace what is no page of this kind.

    Raises:
      UserError: for a folder or another file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, such as {path / 'microscope.html'}")
    if path.exists() and MARK.encode() not in path.read_bytes()[:400]:
        raise UserError(f"{path} exists and is no page of the microscope; name another file")


MARK = '<meta name="generator" content="minimoe microscope">'


def build_page(model: MoETransformer, tokenizer: Tokenizer, *, name: str) -> str:
    """The page as text; arguments as for `write_page`.

    Raises:
      UserError: for a model or a tokenizer that the page cannot compute.
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    header, content = pack_model(model)
    header |= {"name": name, "tokenizer": pack_tokenizer(tokenizer), "samples": samples()}
    header |= {"params": _params(model), "stored": "float" if "embed.float" in header["tensors"] else "int8"}
    parts = {
        "mark": MARK,
        "name": html.escape(name),
        "style": _text("style.css"),
        "header": json.dumps(header, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c"),
        "weights": base64.b64encode(content).decode("ascii"),
        "scripts": "\n".join(f"<script>\n{_text(file)}</script>" for file in SCRIPTS),
    }
    page = _text("page.html")
    for part, value in parts.items():
        page = page.replace(f"{{{{{part}}}}}", value)
    return page


def samples() -> list[dict[str, str]]:
    """The beginning of a validation document of each domain, which the shipped models never saw."""
    first: dict[str, str] = {}
    for document in evaluation_documents(documents(split="val"), "quick"):
        first.setdefault(document.domain, document.text[:SAMPLE_CHARACTERS].rstrip())
    return [{"domain": domain, "text": text} for domain, text in first.items()]


def _params(model: MoETransformer) -> dict[str, int]:
    from minimoe.cost import count_params

    count = count_params(model.config)
    return {"total": count.total, "active": count.active}


def _text(file: str) -> str:
    return resources.files("minimoe.microscope").joinpath(file).read_text(encoding="utf-8")
