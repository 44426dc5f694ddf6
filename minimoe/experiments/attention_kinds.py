"""Does a smaller cache cost quality: in text, in facts, and in the recall of a needle?

Small models of two layers differ in their attention alone. The kinds:

  multi-head, grouped-query, latent   every token is kept, whole or as a latent
  sliding    the last 16 tokens are kept, and nothing else
  CSA        the last 16 tokens, and of the entries of 4 tokens the best 8
  HCA        the last 16 tokens, and an entry for every 16 tokens

Each kind learns three things with three seeds, always for equally many tokens: the corpus (``text``), a book of 1,024
facts (``facts``), and rows in which a number must be found again by its name (``needle``, near ones first). The number is a
digit, so guessing finds one in ten. Two sliding layers pass on what is at most 30 tokens back: they are the control.
Needles are also asked for from farther away than in training. A difference counts if it is larger than the range between
seeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from minimoe.experiments.fact_run import FactRun, book_of
from minimoe.experiments.run import Learning, Run, ran, training_curve
from minimoe.experiments.workplace import Workplace

if TYPE_CHECKING:
    from minimoe.attention import AttentionConfig
    from minimoe.config import ModelConfig
    from minimoe.data import Document, PairNeedles, Tokenizer
    from minimoe.model import MoETransformer
    from minimoe.training import RunConfig, TrainResult

SEEDS = (0, 1, 2)
WIDTH, LAYERS, HEADS, HEAD_DIM, ROPE_DIM = 64, 2, 2, 32, 8
WINDOW = 16
TEXT = {"steps": 150, "batch_size": 8, "learning_rate": 4e-3, "warmup_steps": 20, "eval_every": 0}
FACTS = {"steps": 400, "batch_size": 256}
NEEDLES = {"grow_at": [250, 350, 450]}
NEEDLE_STEPS, NEEDLE_ROWS, NEEDLE_LENGTH = 700, 16, 127
DISTANCES = (8, 16, 32, 48, 64, 96, 128, 256, 512)
ASKED, AT_ONCE = 100, 20  # needles at each distance; rows of thousands of tokens need room


def kinds() -> dict[str, AttentionConfig]:
    """The kinds of attention, by name: two heads of 32, each built as it usually is."""
    from minimoe.attention import (
        CompressedSparseConfig,
        GroupedQueryConfig,
        HeavilyCompressedConfig,
        MultiHeadLatentConfig,
        SlidingWindowConfig,
    )

    shared: dict[str, Any] = {"num_heads": HEADS, "head_dim": HEAD_DIM, "rope_dim": ROPE_DIM, "q_rank": 32}
    shared |= {"window": WINDOW, "out_groups": 1, "out_rank": WIDTH}
    plain = HEAD_DIM - ROPE_DIM
    return {
        "multi-head": GroupedQueryConfig(HEADS, HEADS, HEAD_DIM),
        "grouped-query": GroupedQueryConfig(HEADS, 1, HEAD_DIM),
        "latent": MultiHeadLatentConfig(
            HEADS, kv_rank=32, q_rank=32, nope_dim=plain, rope_dim=ROPE_DIM, v_dim=HEAD_DIM
        ),
        "sliding": SlidingWindowConfig(**shared),
        "CSA": CompressedSparseConfig(**shared, ratio=4, index_heads=2, index_dim=16, index_top_k=8, index_loss=1.0),
        "HCA": HeavilyCompressedConfig(**shared, ratio=16),
    }


def model_of(kind: AttentionConfig, vocab_size: int, context_length: int) -> ModelConfig:
    """Two dense layers around this attention."""
    from minimoe.config import ModelConfig

    return ModelConfig(vocab_size, WIDTH, LAYERS, kind, d_ff=WIDTH, context_length=context_length)


def needles_of(settings: Mapping[str, Any]) -> PairNeedles:
    """What a run reads whose settings are these."""
    from minimoe.data import PairNeedles

    return PairNeedles(**settings)


def read_needles(work: Workplace, run: RunConfig, **settings: Any) -> Learning:
    """Fresh weights, and rows of needles."""
    return Learning(needles_of(settings))


def found_at(model: MoETransformer, needles: PairNeedles, distance: int) -> float:
    """Share of needles found at a distance; the context of the model is made as long as that needs."""
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from minimoe.model import with_config

    rows = needles.questions(distance, ASKED)
    longer = with_config(model, model.config.replace(context_length=rows.shape[1]))
    answers = nnx.jit(lambda model, tokens: model(tokens)[0][:, -1].argmax(axis=-1))
    right = [
        np.asarray(answers(longer, jnp.asarray(some[:, :-1]))) == some[:, -1]
        for some in np.split(rows, ASKED // AT_ONCE)
    ]
    return float(np.mean(right))


@dataclasses.dataclass(frozen=True)
class NeedleRun(Run):
    """A run on needles: ``settings`` are those of `minimoe.data.PairNeedles`, ``model`` is given."""

    preset: str = "needles"
    learn: Callable[..., Learning] = read_needles
    distances: tuple[int, ...] = DISTANCES  # that needles are asked for at

    def needles(self) -> dict[str, Any]:
        """Of the settings, those of the needles."""
        return dict(self.settings)

    def method(self) -> dict[str, Any]:
        return json.loads(json.dumps(dict(self.settings)))

    def tokenizer(self, work: Workplace) -> Tokenizer:
        """Plain bytes."""
        from minimoe.data import ByteTokenizer

        return ByteTokenizer()

    def validation(self, work: Workplace) -> list[Document]:
        """None: every row is new."""
        return []

    def config(self, work: Workplace) -> RunConfig:
        from minimoe.data import ByteTokenizer
        from minimoe.training import Recipe, RunConfig

        plain = {"warmup_steps": 50, "weight_decay": 0.0, "router_bias_rate": 0.0, "log_every": 50}
        recipe = Recipe(**plain | {"checkpoint_every": 300} | dict(self.changes))
        assert self.model is not None
        return RunConfig(self.model, recipe, {"name": "needles"} | self.method(), ByteTokenizer.name)

    def outcome(self, work: Workplace, config: RunConfig, result: TrainResult) -> dict[str, Any]:
        needles = needles_of(self.needles())
        found = {
            **ran(self, config, result),
            "found": {str(distance): found_at(result.model, needles, distance) for distance in self.distances},
            "curve": training_curve(result),
        }
        for score in self.scores:
            found |= score(work, result.model, self.settings)
        return found

    def headline(self, outcome: Mapping[str, Any]) -> str:
        return f"{self.name}: " + ", ".join(f"{share:.0%} at {far}" for far, share in outcome["found"].items())


def runs(done: Mapping[str, Any]) -> list[Run]:
    """Six kinds of attention on text, on facts and on needles; three seeds."""
    from minimoe.data import ByteTokenizer

    book, symbols = {"entries": 1024}, ByteTokenizer().vocab_size
    needle = {"steps": NEEDLE_STEPS, "batch_size": NEEDLE_ROWS, "learning_rate": 3e-3}
    found: list[Run] = []
    for name, kind in kinds().items():
        model = model_of(kind, symbols, NEEDLE_LENGTH)
        for seed in SEEDS:
            changes = needle | {"seed": seed}
            found.append(NeedleRun(f"needle-{name}-{seed}", changes=changes, settings=NEEDLES, model=model))
    for name, kind in kinds().items():
        model = model_of(kind, 2048, 256)
        found += [Run(f"text-{name}-{seed}", "nano", TEXT | {"seed": seed}, model=model) for seed in SEEDS]
    for name, kind in kinds().items():
        model = model_of(kind, symbols, book_of(book).length)
        for seed in SEEDS:
            found.append(FactRun(f"facts-{name}-{seed}", changes=FACTS | {"seed": seed}, settings=book, model=model))
    return found
