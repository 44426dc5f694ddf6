"""Knowledge as a yardstick: how many entries of a `FactBook` a model recalls, and how many bits that is per parameter.

Axes: N entries, B batch, L tokens of an entry, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from minimoe.attention import GroupedQueryConfig
from minimoe.config import ModelConfig, MoEConfig
from minimoe.data import ByteTokenizer, FactBook, Tokenizer, TrainingData
from minimoe.errors import UserError
from minimoe.model import ModelOutput, MoETransformer
from minimoe.training.method import Method, StepChanges
from minimoe.training.recipe import Recipe
from minimoe.training.run_folder import RunConfig
from minimoe.training.step import lm_loss


@dataclasses.dataclass(frozen=True)
class FactEvaluation:
    """What a model recalls of a book.

    Attributes:
      recalled: share of entries whose whole number is right, 0..1, greedy.
      bits: held in all: what guessing would cost, minus what the model's probabilities cost; never below 0.
      bits_per_param: ``bits`` by all parameters of the model, used or idle. Trained long enough, a dense
        transformer holds about 2 (Allen-Zhu and Li, arXiv 2404.05405).
      right: of each entry, in the order of the book.
    """

    recalled: float
    bits: float
    bits_per_param: float
    right: Bool[np.ndarray, "N"]

    def to_record(self) -> dict[str, float]:
        """Plain values, ready for JSON, without ``right``."""
        return {"recalled": self.recalled, "bits": self.bits, "bits_per_param": self.bits_per_param}


# 6e-3 and 8e-3 learn a book well, dense or sparse; at 1.6e-2 nothing is learned.
RECIPE = Recipe(
    steps=2000,
    batch_size=512,
    learning_rate=6e-3,
    warmup_steps=50,
    weight_decay=0.0,
    router_bias_rate=0.02,
    log_every=50,
    checkpoint_every=1000,
)


def fact_model(book: FactBook, num_experts: int = 8, *, width: int = 32) -> ModelConfig:
    """A small sparse model for a book: two blocks, experts as wide as the model, two of them and a shared one a token.

    Args:
      num_experts: E, 2 or more. ``.dense_equivalent()`` of the result computes as much and has no idle parameters.
      width: D, of the model and of each expert, a multiple of 32.

    Example:
      >>> fact_model(FactBook(100), num_experts=32).moe.active_fraction
      0.09090909090909091
    """
    moe = MoEConfig(width, width, num_experts, top_k=2, num_shared_experts=1, score="sigmoid")
    attention = GroupedQueryConfig(num_heads=width // 32, num_kv_heads=width // 32, head_dim=32)
    return ModelConfig(ByteTokenizer().vocab_size, width, 2, attention, moe, context_length=book.length)


def fact_run(book: FactBook, model: ModelConfig | None = None, **changes: Any) -> RunConfig:
    """A run that learns a book: pass it to `minimoe.training.train` with ``method=RecallFacts()``.

    Args:
      model: None is `fact_model`, with 8 experts. changes: to the recipe.

    Example:
      >>> book = FactBook(64, letters=2, digits=2)
      >>> run = fact_run(book, steps=3, batch_size=64)
      >>> run.model.context_length, run.recipe.steps
      (3, 3)
    """
    model = fact_model(book) if model is None else model
    recipe = RECIPE if model.moe else dataclasses.replace(RECIPE, router_bias_rate=0.0)
    about = {"name": f"a book of {book.size} facts, seed {book.seed}"}
    return RunConfig(model, dataclasses.replace(recipe, **changes), about, ByteTokenizer.name)


@dataclasses.dataclass(frozen=True)
class RecallFacts(Method):
    """Training on the numbers of a `FactBook`: the names are read, and no loss is spent on guessing them.

    Example:
      >>> RecallFacts().to_dict()
      {'name': 'recall-facts'}
    """

    name: ClassVar[str] = "recall-facts"

    def changes(self, run: RunConfig, model: MoETransformer, data: TrainingData, tokenizer: Tokenizer) -> StepChanges:
        """An objective for entries of this book.

        Raises:
          UserError: if the data are no `FactBook`.
        """
        if not isinstance(data, FactBook):
            raise UserError(f"recall-facts trains on a FactBook, not on {type(data).__name__}; pass one as data")
        return StepChanges(objective=_DigitLoss(data.letters))


@dataclasses.dataclass(frozen=True)
class _DigitLoss:
    """Mean cross-entropy of the digits, nats each. Equal ones compare equal, so a step is compiled once."""

    letters: int

    def __call__(
        self, output: ModelOutput, targets: Int[Array, "B L"], where: Bool[Array, "B L"], extra: Any
    ) -> Float[Array, ""]:
        asked = jnp.arange(targets.shape[1]) >= self.letters - 1
        return lm_loss(output.logits, targets, where & asked[None, :])


def evaluate_facts(model: MoETransformer, book: FactBook, *, batch_size: int = 1024) -> FactEvaluation:
    """Asks a model for every number of a book.

    Args:
      model: of any kind, quantized ones included, with the ids of `minimoe.data.ByteTokenizer`.
      batch_size: entries at a time; the result does not depend on it.

    Example:
      >>> book = FactBook(16)
      >>> evaluate_facts(MoETransformer(fact_model(book), rngs=nnx.Rngs(0)), book).recalled
      0.0
    """
    nats, right = np.zeros(book.size), np.zeros(book.size, bool)
    for start in range(0, book.size, batch_size):
        rows = book.entries[start : start + batch_size]
        padded = np.concatenate(
            [rows, np.repeat(rows[-1:], batch_size - len(rows), axis=0)]
        )  # one shape, compiled once
        losses, hits = _digits(model, jnp.asarray(padded), book.letters)
        nats[start : start + len(rows)] = np.asarray(losses)[: len(rows)]
        right[start : start + len(rows)] = np.asarray(hits)[: len(rows)]
    bits = max(0.0, book.bits - float(nats.sum()) / math.log(2))
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return FactEvaluation(float(right.mean()), bits, bits / size, right)


@nnx.jit(static_argnames="letters")
def _digits(
    model: MoETransformer, entries: Int[Array, "B W"], letters: int
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Nats of each entry's number, and whether the likeliest digits are the right ones.

    The right digits are read while they are asked for. A first wrong answer makes the entry wrong in any case, so this
    equals greedy decoding.
    """
    logits, _ = model(entries[:, :-1])
    logits, digits = logits[:, letters - 1 :], entries[:, letters:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, digits)
    return losses.sum(axis=1), (logits.argmax(axis=-1) == digits).all(axis=1)
