"""Quality in bits per byte, by domain. Axes: W windows, B windows a batch, L sequence, E experts.

The protocol (which text, which windows, which targets count) is `minimoe.data.evaluation`'s; here the model is run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.config import ModelConfig
from minimoe.data import Document, Tokenizer, check_vocabulary, windows
from minimoe.data.evaluation import window_length
from minimoe.layers import as_mask
from minimoe.layers.token_ids import as_labels, spoil
from minimoe.moe import Routing, expert_load, experts_choose, stack_loads, without_drops

TOKENS_PER_BATCH = 4096


@runtime_checkable
class Scorer(Protocol):
    """What evaluation asks of a model: a `MoETransformer`, or an `nnx.Module` around one."""

    @property
    def config(self) -> ModelConfig:
        """Its context length is the window (see `window_length`), its vocabulary the tokenizer's limit."""

    def __call__(self, tokens: Int[Array, "B L"], /) -> tuple[Float[Array, "B L V"], tuple[Routing, ...]]:
        """Logits of the next token at every position, and a `Routing` for each sparse layer."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text.

    Attributes:
      bits_per_byte: unweighted mean over domains. pooled_bits_per_byte: all bits over all bytes.
      per_domain: bits per byte of each domain.
      num_bytes, num_tokens: scored.
      load: assignments ``[domains, layers, E]`` of scored positions, domains in the order of ``per_domain``;
        ``[domains, 0, 0]`` for a dense model.
    """

    bits_per_byte: float
    pooled_bits_per_byte: float
    per_domain: dict[str, float]
    num_bytes: int
    num_tokens: int
    load: Float[np.ndarray, "domains layers E"]

    def to_record(self) -> dict[str, object]:
        """The numbers without the load, ready for JSON."""
        record = dataclasses.asdict(self)
        del record["load"]
        return record


@nnx.jit(static_argnames=("alone",))
def eval_step(
    model: Scorer,
    tokens: Int[Array, "B L"],
    targets: Int[Array, "B L"],
    where: Bool[Array, "B L"],
    *,
    alone: bool = False,
) -> tuple[Float[Array, "B"], Float[Array, "B layers E"]]:
    """Nats of the scored targets of each row, and each row's load by layer; ``alone``: each row is a batch of its own.

    A scored target that is no id of the vocabulary makes its row NaN; targets that ``where`` leaves out may be anything.
    """
    where = as_mask(where, tokens.shape, "eval_step")
    if not alone:
        return _score_rows(model, tokens, targets, where)
    rows = (tokens[:, None], targets[:, None], where[:, None])
    nats, load = jax.lax.map(lambda row: _score_rows(model, *row), rows)
    return nats[:, 0], load[:, 0]


def _score_rows(model, tokens, targets, where):
    logits, routing = model(tokens)
    targets, wrong = as_labels(targets, logits.shape[-1], where, owner="eval_step")
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    nats = jnp.sum(spoil(jax.nn.logsumexp(logits, axis=-1) - chosen, wrong), axis=-1, where=where)
    if not routing:
        return nats, jnp.zeros((tokens.shape[0], 0, 0))
    return nats, stack_loads([_row_load(r, where) for r in routing])


def _row_load(routing: Routing, where: Bool[Array, "B L"]) -> Float[Array, "B E"]:
    experts, num_experts = routing.experts, routing.probs.shape[-1]
    ids, used = (array.reshape(*where.shape, -1) for array in (experts, routing.used))  # [B, L, K]

    def load_of(ids, used, real):
        return expert_load(ids, num_experts, real, used=used)

    return jax.vmap(load_of)(ids, used, where)


def evaluate(
    model: Scorer,
    documents: list[Document],
    tokenizer: Tokenizer,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Bits per byte of whole documents: full windows of context, every byte counted once.

    What a document scores depends on it and on the model alone, not on the documents beside it. So a model with
    ``dispatch="capacity"`` is scored without dropping anything. Under ``select="expert_choice"`` each window is a batch of
    its own; within it experts still choose among all tokens, the later ones included, and so the score flatters.

    Args:
      model: its context length is the window, up to 4,096 tokens.
      documents: from `minimoe.data.evaluation_documents`, or any.
      tokenizer: the one the model was trained with.
      progress: called with (windows done, windows in all) after each batch.

    Raises:
      UserError: if there is nothing to score, or the tokenizer has more ids than the model.
    """
    check_vocabulary(tokenizer, model.config.vocab_size)
    cut = windows(documents, tokenizer, window_length(model.config.context_length))
    names, num_bytes = cut.domain_names, cut.domain_bytes
    nats, load = _score(without_drops(model), cut, progress)
    domain_of_row = np.asarray(cut.domains)
    bits = np.array([nats[domain_of_row == d].sum() for d in range(len(names))]) / math.log(2)
    load = np.stack([load[domain_of_row == d].sum(axis=0) for d in range(len(names))])
    per_domain = {name: float(b / n) for name, b, n in zip(names, bits, num_bytes, strict=True)}
    return Evaluation(
        bits_per_byte=float(np.mean(list(per_domain.values()))),
        pooled_bits_per_byte=float(bits.sum() / num_bytes.sum()),
        per_domain=per_domain,
        num_bytes=int(num_bytes.sum()),
        num_tokens=int(cut.where.sum()),
        load=load,
    )


def _score(model, cut, progress) -> tuple[np.ndarray, np.ndarray]:
    """Nats and load of every window, in batches of one shape."""
    count, length = cut.tokens.shape
    rows = max(1, min(count, TOKENS_PER_BATCH // length))
    nats, loads = [], []
    alone = experts_choose(model)
    for start in range(0, count, rows):
        part = [array[start : start + rows] for array in (cut.tokens, cut.targets, cut.where)]
        missing = rows - len(part[0])
        padded = [np.pad(array, ((0, missing), (0, 0))) for array in part]  # the last batch: rows that score nothing
        row_nats, row_load = eval_step(model, *map(jnp.asarray, padded), alone=alone)
        nats.append(np.asarray(row_nats, np.float64)[: rows - missing])
        loads.append(np.asarray(row_load)[: rows - missing])
        if progress is not None:
            progress(min(start + rows, count), count)
    return np.concatenate(nats), np.concatenate(loads)
