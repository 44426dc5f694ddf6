"""``minimoe generate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe.checks import random_seed
from minimoe.console import messages, print_json, start, write_out
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.data import Tokenizer


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A training folder or a saved folder.")],
    prompt: Annotated[str, typer.Option(help="Text to continue; empty starts a new document.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Length of the continuation in tokens.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest that reach this probability.")] = None,
    samples: Annotated[int, typer.Option(help="How many continuations.")] = 1,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal text.")] = 0,
    speculative: Annotated[
        bool, typer.Option("--speculative", help="Draft with the model's head for multi-token prediction.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Continue a prompt; generation stops at the end of a document.

    --speculative needs a model trained with --mtp. Greedy text is the same with and without it, samples have the same
    distribution. It says how many drafts were right, and how many tokens one pass through the model wrote.

    Example: minimoe generate runs/nano --prompt "In the beginning" --max-new-tokens 60 --temperature 0.7
    """
    import time

    import jax
    import jax.numpy as jnp
    import numpy as np

    from minimoe.hub import resolve_with_tokenizer
    from minimoe.inference import generate as run_generation
    from minimoe.inference import generate_speculative
    from minimoe.inference.decoding import NO_TOKEN

    if samples < 1:
        raise UserError(f"--samples {samples} must be at least 1")
    random_seed("--seed", seed)
    model, tokenizer, _, _ = resolve_with_tokenizer(checkpoint)
    start()
    ids = encode_prompt(tokenizer, prompt)
    began = time.monotonic()
    prompts = jnp.tile(jnp.asarray([ids], jnp.int32), (samples, 1))
    settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    settings |= {"stop_token": tokenizer.eot_id, "key": jax.random.key(seed)}
    drafts: dict[str, float | None] = {}
    if speculative:
        found = generate_speculative(model, prompts, max_new_tokens, **settings)
        out = found.tokens
        drafts = {"acceptance_rate": found.acceptance_rate, "tokens_per_forward": found.tokens_per_forward}
    else:
        out = run_generation(model, prompts, max_new_tokens, **settings)
    if (np.asarray(out) == NO_TOKEN).any():
        raise UserError(f"the logits of {checkpoint} are NaN, so no token can be chosen; check its weights")
    new = [_until_stop(row[len(ids) :].tolist(), tokenizer.eot_id) for row in np.asarray(out)]
    texts = [tokenizer.decode(row) for row in new]
    if json:
        counts = {"prompt_tokens": len(ids), "new_tokens": [len(row) for row in new]}
        print_json({"prompt": prompt, "texts": texts, "seconds": round(time.monotonic() - began, 3)} | counts | drafts)
        return
    for text in texts:
        write_out(prompt + text)
        if samples > 1:
            write_out("---")
    if speculative:
        rate = "no draft" if drafts["acceptance_rate"] is None else f"{drafts['acceptance_rate']:.0%} of the drafts"
        messages.print(f"{rate} accepted, {drafts['tokens_per_forward']:.2f} tokens for each forward pass")


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt, the end-of-text token first, as documents begin in training."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not UTF-8 text at character {error.start}; type it again") from error
    return [tokenizer.eot_id, *tokenizer.encode(prompt)]


def _until_stop(ids: list[int], stop: int) -> list[int]:
    return ids[: ids.index(stop)] if stop in ids else ids
