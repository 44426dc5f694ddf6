"""Checks of the options that ask for reasoning problems, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimoe.errors import UserError
from minimoe.progress import GRADED, NEW_TOKENS

if TYPE_CHECKING:
    from minimoe.data import Tokenizer
    from minimoe.training import RunConfig


def check_share(share: float) -> None:
    """Raises:
    UserError: if ``share`` is none.
    """
    if not 0 <= share <= 1:
        raise UserError(f"--tasks {share} must be in 0..1; 0.2 gives reasoning problems a fifth of the tokens")


def check_length(run: RunConfig, tokenizer: Tokenizer, max_new_tokens: int = NEW_TOKENS) -> None:
    """Raises:
    UserError: if reasoning problems and their answers are too long for the model's context.
    """
    from minimoe.distill import task_prompts

    prompts = tokenizer.encode_documents([prompt.text for prompt in task_prompts(GRADED * 5, split="val")])
    needed = 1 + max(map(len, prompts)) + max_new_tokens
    if needed > run.model.context_length:
        raise UserError(
            f"reasoning problems take up to {needed} tokens, the model has context_length="
            f"{run.model.context_length}; leave --tasks and --on-policy out or use a longer context"
        )
