"""Models that come with the package: trained on the bundled text, quantized, ready without a network.

hub/weights/NAME/   what `minimoe.hub.save` writes, and MODEL_CARD.md: how it was made, and what it scores

Each was made by `minimoe experiments ship NAME` from a training folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from minimoe.config import ModelConfig
from minimoe.data import Tokenizer
from minimoe.errors import UserError
from minimoe.hub.folder import is_saved_folder, load, read_config
from minimoe.model import MoETransformer

WEIGHTS = Path(__file__).parent / "weights"
CARD_FILE = "MODEL_CARD.md"
Loaded: TypeAlias = tuple[MoETransformer, Tokenizer | None, ModelConfig]


def shipped() -> Mapping[str, Callable[[], Loaded]]:
    """A loader for each model that comes with the package, by its name."""
    if not WEIGHTS.is_dir():
        return {}
    folders = sorted(folder for folder in WEIGHTS.iterdir() if is_saved_folder(folder))
    return {folder.name: lambda folder=folder: load(folder) for folder in folders}


def load_pretrained(name: str) -> Loaded:
    """A model that comes with the package; no network, no cache.

    It is quantized and computes as such: see `minimoe.quant`. What it was trained on, how, and what it scores stand in
    `card`.

    Args:
      name: one of `shipped`.

    Returns:
      Model, tokenizer and config.

    Raises:
      UserError: for another name, listing those there are; for a damaged installation.

    Example:
      >>> model, tokenizer, config = load_pretrained("small")
      >>> config.num_layers, tokenizer.name
      (4, 'bpe2048')
    """
    models = shipped()
    if name not in models:
        raise UserError(f"no model {name!r} comes with the package; choose one of {', '.join(models) or 'none yet'}")
    return models[name]()


def card(name: str) -> str:
    """The model card of a shipped model, Markdown.

    Raises:
      UserError: for an unknown name.
    """
    if name not in shipped():
        raise UserError(f"no model {name!r} comes with the package; choose one of {', '.join(shipped()) or 'none yet'}")
    return (WEIGHTS / name / CARD_FILE).read_text(encoding="utf-8")


def recorded_quality(name: str) -> Mapping[str, float]:
    """Bits per byte that the shipped weights had when they were made, by protocol: ``quick`` and ``full``."""
    return read_config(WEIGHTS / name)["provenance"]["bits_per_byte"]
