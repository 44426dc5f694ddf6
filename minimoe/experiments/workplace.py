"""Where the runs of all experiments lie, and what they share: the corpus, the tokenizer and the models already trained."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from minimoe.console import messages
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer

FOLDER, EARLIER_FOLDER = Path("runs/experiments"), Path("runs/lab")
# Shipped models that stand in for runs that are not in the workplace.
SHIPPED_AS = {
    "teacher/teacher": "teacher",
    "small-hour/small": "small",
    "nano/nano": "nano",
    "v4-nano/v4-nano": "v4-nano",
    "v4-small/v4-small": "v4-small",
    "reasoning/forward-kl-0": "student",
    "specialists/stories": "stories",
    "specialists/bibles": "bibles",
    "specialists/exact": "exact",
}


def default_folder() -> Path:
    """``runs/experiments``, or ``runs/lab`` where an earlier version left its runs."""
    return EARLIER_FOLDER if EARLIER_FOLDER.is_dir() and not FOLDER.is_dir() else FOLDER


class Workplace:
    """The folder of all runs: run R of experiment E is in ``folder/E/R``.

    Args:
      folder: need not exist yet.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Of all experiments: the bundled one."""
        from minimoe.data import load_tokenizer

        return load_tokenizer()

    @functools.cached_property
    def corpus(self) -> list[Document]:
        """The bundled text, both splits."""
        from minimoe import data

        return data.documents()

    @property
    def validation(self) -> list[Document]:
        """The validation split of the corpus."""
        return [document for document in self.corpus if document.split == "val"]

    def together(self, name: str) -> Path:
        """Where the model of a run, ``experiment/run``, is kept that was trained together with its seeds."""
        return self.folder / f"{name}-together"

    def finished(self, name: str) -> MoETransformer:
        """The model of a finished run, ``experiment/run``; if only its shipped weights are here, those, decoded.

        Raises:
          UserError: if there is neither, with the command that makes it.
        """
        from minimoe.hub import is_saved_folder, load, load_pretrained, shipped
        from minimoe.quant import dequantize_model
        from minimoe.training import load_checkpoint

        folder = self.folder / name
        steps = checkpoints_in(folder)
        if steps:
            model, _, run = load_checkpoint(folder)
            if steps[-1] < run.recipe.steps:
                raise UserError(
                    f"{folder} is at step {steps[-1]} of {run.recipe.steps}; let `minimoe experiments run` finish it"
                )
            return model
        if SHIPPED_AS.get(name) in shipped():
            messages.print(f"{folder} is not here: using the shipped model {SHIPPED_AS[name]!r}, decoded")
            return dequantize_model(load_pretrained(SHIPPED_AS[name])[0])
        if is_saved_folder(self.together(name)):
            return load(self.together(name))[0]
        experiment = name.split("/")[0]
        raise UserError(
            f"{folder} holds no trained model; run `minimoe experiments run {experiment} --work {self.folder}` first"
        )


def checkpoints_in(folder: Path) -> list[int]:
    """Steps of the checkpoints of a training folder; none where there is no such folder."""
    from minimoe.training.checkpoint import CheckpointFolder
    from minimoe.training.run_folder import CONFIG_FILE

    return CheckpointFolder(folder).steps() if (folder / CONFIG_FILE).is_file() else []
