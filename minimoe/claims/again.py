"""``minimoe claims --run``: what can be measured again in minutes, and whether it is what was recorded.

Everything here is deterministic on one machine. On another, sums are rounded otherwise, so each number has a tolerance;
speeds have none, because they are the machine's.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimoe.claims.rungs import RECIPE, RECORD
from minimoe.errors import UserError
from minimoe.experiments import read_record

if TYPE_CHECKING:
    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer

FACTS, STEPS, SEEDS, COMMON, BIAS_RATE = 1024, 100, 3, 2.0, 0.02
OF_EACH_LEVEL = 20  # problems
Values = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Again:
    """A number that was measured again.

    Attributes:
      row: id of the row of the ledger. name: of the number.
      recorded: None where there is no record. now: as measured here.
      tolerance: how far the two may lie apart; None for a speed.
    """

    row: str
    name: str
    recorded: int | float | None
    now: float
    tolerance: int | float | None

    @property
    def same(self) -> bool | None:
        """Whether both agree; None where that is not asked."""
        if self.recorded is None or self.tolerance is None:
            return None
        return math.isfinite(self.now) and abs(self.now - self.recorded) <= self.tolerance

    def to_record(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self) | {"same": self.same}


# Row -> name of a number -> how far a run elsewhere may lie from the record.
TOLERANCES: dict[str, dict[str, int | float | None]] = {
    "active": {"parameters of nano, counted in its arrays": 0, "active parameters of nano, by the formula": 0},
    "tflops": {"facts recalled, 32 experts minus dense, points": 10},
    "balance": {"facts recalled, bias minus none, points": 15, "MaxVio without": 3, "MaxVio with the bias": 1},
    "eight-bits": {
        "bits per byte of nano": 0.002,
        "change in int8 from what was trained, %": 0.1,
        "change in fp8 from int8, %": 0.1,
        "bytes in int8": 0,
    },
    "four-bits": {"change in v4 from int8, %": 0.2, "bytes in v4": 0},
    "distillation": {"problems solved by nano, of 100": 2, "problems solved by student, of 100": 5},
    "cache": {"V3.2 over V4-Pro at 1,048,576 tokens": 0, "bytes of nano's arrays at 256 tokens": 0},
    "open-weights": {"tensors that differ after the layout of Transformers": 0},
    "most-with-least": {"tokens/s written by nano": None},
}


def measure(
    progress: Callable[[int, int, str], None] = lambda done, total, what: None, only: str | None = None
) -> list[Again]:
    """Measures again what can be; some minutes on two cores.

    Args:
      progress: called with (parts done, parts in all, name of the next part).
      only: id of a row; None is all of them. A row of which nothing can be measured in minutes gives nothing.
    """
    known = recorded_values()
    found: list[Again] = []
    parts = [(row, part) for row, part in _parts() if only in (None, row)]
    for index, (row, part) in enumerate(parts):
        progress(index, len(parts), row)
        for name, now in part().items():
            found.append(Again(row, name, known.get(name), now, TOLERANCES[row][name]))
    progress(len(parts), len(parts), "done")
    return found


def recorded_values() -> Mapping[str, float]:
    """What ``--run --record`` wrote; empty where there is no record."""
    try:
        return read_record(RECORD)["values"]
    except UserError:
        return {}


def _parts() -> Iterator[tuple[str, Callable[[], Values]]]:
    yield "active", _counted
    yield "tflops", _facts
    yield "balance", _collapse
    yield "eight-bits", _eight_bits
    yield "four-bits", _four_bits
    yield "distillation", _solved
    yield "cache", _cache
    yield "open-weights", _round_trip
    yield "most-with-least", _speed


def load_floats(name: str) -> MoETransformer:
    """A shipped model, decoded to float32."""
    from minimoe.hub import load_pretrained
    from minimoe.quant import dequantize_model

    return dequantize_model(load_pretrained(name)[0])


def quick_text() -> tuple[list[Document], Tokenizer]:
    """The text of the quick protocol, and the tokenizer of the package."""
    from minimoe.data import documents, evaluation_documents, load_tokenizer

    return evaluation_documents(documents(split="val"), "quick"), load_tokenizer()


def bits_of(model: MoETransformer) -> float:
    """Bits per byte by the quick protocol."""
    from minimoe.training import evaluate

    return evaluate(model, *quick_text()).bits_per_byte


def solved_percent(model: MoETransformer) -> float:
    """Problems that the model solves with its steps, of `OF_EACH_LEVEL` of each level, in percent."""
    from minimoe.training.evaluate_tasks import evaluate_tasks

    return 100 * evaluate_tasks(model, quick_text()[1], num=OF_EACH_LEVEL).mean_exact_match


def _counted() -> Values:
    import jax
    from flax import nnx

    from minimoe.cost import count_params

    model = load_floats("nano")
    arrays = jax.tree.leaves(nnx.state(model, nnx.Param))
    names = tuple(TOLERANCES["active"])
    return {names[0]: float(sum(a.size for a in arrays)), names[1]: float(count_params(model.config).active)}


def _facts() -> Values:
    from minimoe.claims.book import learn

    dense, sparse = ([float(learn(s, e, FACTS, STEPS).recalled) for s in range(SEEDS)] for e in (0, 32))
    return {"facts recalled, 32 experts minus dense, points": 100 * (statistics.mean(sparse) - statistics.mean(dense))}


def _collapse() -> Values:
    from minimoe.claims.book import learn

    none, bias = (
        [learn(s, 32, FACTS, STEPS, common=COMMON, bias_rate=rate) for s in range(SEEDS)] for rate in (0.0, BIAS_RATE)
    )
    recalled = [statistics.mean(float(one.recalled) for one in way) for way in (none, bias)]
    late = [statistics.mean(float(one.max_violation[-1]) for one in way) for way in (none, bias)]
    return {
        "facts recalled, bias minus none, points": 100 * (recalled[1] - recalled[0]),
        "MaxVio without": late[0],
        "MaxVio with the bias": late[1],
    }


def _rounded(recipe: str, before: float) -> tuple[float, float]:
    """Change of bits per byte in percent, and bytes by the formats."""
    from minimoe.quant import dequantize_model, quantize_model, size_report

    rounded = quantize_model(load_floats("nano"), recipe)
    return 100 * (bits_of(dequantize_model(rounded)) / before - 1), float(size_report(rounded).bytes)


def _eight_bits() -> Values:
    before = bits_of(load_floats("nano"))  # which ships in int8
    trained = read_record("nano")["runs"]["nano"]["quick"]["bits_per_byte"]
    (_, size), (fp8, _) = (_rounded(recipe, before) for recipe in ("int8", "fp8"))
    int8 = 100 * (before / trained - 1)
    changes = {"change in int8 from what was trained, %": int8, "change in fp8 from int8, %": fp8}
    return {"bits per byte of nano": before, **changes, "bytes in int8": size}


def _four_bits() -> Values:
    change, size = _rounded(RECIPE, bits_of(load_floats("nano")))
    return {"change in v4 from int8, %": change, "bytes in v4": size}


def _solved() -> Values:
    return {f"problems solved by {name}, of 100": solved_percent(load_floats(name)) for name in ("nano", "student")}


def _cache() -> Values:
    import jax

    from minimoe.attention import KVCache
    from minimoe.claims.caches import published_ratio
    from minimoe.config import ModelConfig

    config = ModelConfig.preset("nano")
    kinds = [layer.attention for layer in config.layers if layer.attention is not None]
    states = [kind.init_cache(1, 256, KVCache.zeros, config.dtype) for kind in kinds]
    held = sum(array.nbytes for array in jax.tree.leaves(states) if array.ndim)
    names = tuple(TOLERANCES["cache"])
    return {names[0]: published_ratio()["reported"], names[1]: float(held)}


def _round_trip() -> Values:
    import jax

    from minimoe.hub import load, save

    model = load_floats("nano")
    with tempfile.TemporaryDirectory() as folder:
        back, _, _ = load(save(model, Path(folder) / "nano", quick_text()[1], format="huggingface"))
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(back), strict=True)
    return {
        "tensors that differ after the layout of Transformers": float(sum(not bool((a == b).all()) for a, b in pairs))
    }


def _speed() -> Values:
    return {"tokens/s written by nano": speeds(load_floats("nano"))["decode"]}


def speeds(model: MoETransformer, rounds: int = 7) -> dict[str, float]:
    """Tokens a second of one sequence: ``prefill``, read 256 at once, and ``decode``, 64 written after 64. The best round."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from minimoe.inference import generate

    tokens = jax.random.randint(jax.random.key(0), (1, 256), 0, model.config.vocab_size)
    read = nnx.jit(lambda model, tokens: model(tokens)[0])
    prompt = jnp.asarray(tokens[:, :64])
    return {
        "prefill": 256 / best_seconds(lambda: read(model, tokens), rounds),
        "decode": 64 / best_seconds(lambda: generate(model, prompt, 64, temperature=0), rounds),
    }


def best_seconds(act: Callable[[], Any], rounds: int) -> float:
    """The shortest of some rounds, after one that compiles: what else the machine does only makes a round longer."""
    import jax

    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        jax.block_until_ready(act())
        times.append(time.perf_counter() - began)
    return min(times[1:])


def measure_rungs(progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> dict[str, Values]:
    """What the ladder needs beyond configs and records, by rung: quality of shipped weights, and speeds here."""
    from flax import nnx

    from minimoe.config import ModelConfig
    from minimoe.hub import shipped
    from minimoe.model import MoETransformer
    from minimoe.quant import quantize_model

    def random(config: ModelConfig) -> MoETransformer:
        return MoETransformer(config, rngs=nnx.Rngs(0))

    def scored(model: MoETransformer) -> Values:
        return {"bits_per_byte": bits_of(model), "exact_match": solved_percent(model)}

    trained = "v4-nano" in shipped()
    makers: dict[str, Callable[[], Values]] = {
        "dense": lambda: speeds(random(ModelConfig.preset("nano").dense_equivalent())),
        "sparse": lambda: {"exact_match": solved_percent(load_floats("nano"))} | speeds(load_floats("nano")),
        "quantized": lambda: _of_rounded(load_floats("nano"), scored),
        "distilled": lambda: _of_rounded(load_floats("student"), scored),
        "small cache": lambda: (
            _of_rounded(load_floats("v4-nano"), scored)
            if trained
            else speeds(quantize_model(random(ModelConfig.preset("v4-nano").replace(mtp=None)), RECIPE))
        ),
        "exported": _exported,
    }
    found: dict[str, Values] = {}
    for index, (name, make) in enumerate(makers.items()):
        progress(index, len(makers), name)
        found[name] = make()
    progress(len(makers), len(makers), "done")
    return found


def _of_rounded(model: MoETransformer, scored: Callable[[MoETransformer], Values]) -> Values:
    """Quality by the decoded values, which are the same numbers, and speed by the packed ones."""
    from minimoe.quant import dequantize_model, quantize_model

    rounded = quantize_model(model, RECIPE)
    return scored(dequantize_model(rounded)) | speeds(rounded)


def _exported() -> Values:
    """`student` as an ONNX file in int8: its bytes, problems solved, and speeds; nothing where ONNX Runtime is missing."""
    import importlib.util

    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return {}
    import numpy as np

    from minimoe.data import LEVELS, problem
    from minimoe.export import OnnxModel, export_onnx
    from minimoe.training.evaluate_tasks import grade

    tokenizer = quick_text()[1]
    asked = [problem(index, level, "val") for level in LEVELS for index in range(OF_EACH_LEVEL)]
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(load_floats("student"), Path(folder) / "onnx", tokenizer, dtype="int8")
        size = (path / "model.onnx").stat().st_size
        model = OnnxModel(path)
        texts = [one.prompt() + tokenizer.decode(_until_end(model, one.prompt(), tokenizer)) for one in asked]
        tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, 256))
        times = {
            "prefill": (256, lambda: model.logits(tokens)),
            "decode": (64, lambda: model.generate(tokens[0, :64].tolist(), 64)),
        }
        found = {"weight_bytes": float(size), "exact_match": 100 * grade(asked, texts, "worked").mean_exact_match}
        found["bits_per_byte"] = bits_of(_scorer(model))
        found |= {name: count / best_seconds(act, 5) for name, (count, act) in times.items()}
    return found


def _scorer(onnx: Any) -> Any:
    """What evaluation asks of a model, answered by ONNX Runtime. It says nothing of routing."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    def read(tokens: Any) -> Any:
        return np.asarray(onnx.logits(np.asarray(tokens)), np.float32)

    class Scorer(nnx.Module):
        config = onnx.config

        def __call__(self, tokens: Any) -> tuple[Any, tuple[()]]:
            shape = jax.ShapeDtypeStruct((*tokens.shape, onnx.config.vocab_size), jnp.float32)
            return jax.pure_callback(read, shape, tokens), ()

    return Scorer()


def _until_end(model: Any, prompt: str, tokenizer: Tokenizer, most: int = 96) -> list[int]:
    """Greedy continuation up to the token that ends a text."""
    ids, cache, written = [tokenizer.eot_id, *tokenizer.encode(prompt)], model.empty_cache(1), []
    for _ in range(most):
        logits, cache = model.extend([ids], cache)
        ids = [int(logits[0, -1].argmax())]
        if ids[0] == tokenizer.eot_id:
            break
        written += ids
    return written
