"""The tour's race: a sparse model and a dense one of equal arithmetic read the same text, live or from a record."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from minimoe.console import messages

if TYPE_CHECKING:
    from minimoe.config import ModelConfig
    from minimoe.data import Document, Tokenizer
    from minimoe.model import MoETransformer

STEPS = 120
RECORD, RECORDED = "longer-text", {"sparse": "experts-8", "dense": "dense"}


def recorded_race() -> dict[str, Any]:
    """Both models as the record has them: means of three seeds, for which the fast tour has no time.

    Returns:
      ``models``: for each its name, sizes from the formulas and ``bits_per_byte`` (full protocol, mean over the seeds);
      ``race``: ``source``, ``steps`` and ``tokens`` of a run, ``gains`` (dense less sparse by seed, bits per byte) and
      ``curves`` (what was logged, of seed 0).
    """
    from minimoe.config import ModelConfig
    from minimoe.experiments import read_record

    runs = read_record(RECORD)["runs"]
    scored, curves, models = {}, {}, []
    for name, recorded in RECORDED.items():
        seeds = [runs[key] for key in sorted(runs) if key.rpartition("-")[0] == recorded]
        scored[name] = [run["full"]["bits_per_byte"] for run in seeds]
        curves[name] = seeds[0]["curve"]
        config = ModelConfig.from_dict(seeds[0]["config"]["model"])
        models.append(_sizes(name, config) | {"bits_per_byte": statistics.mean(scored[name])})
    gains = [dense - sparse for sparse, dense in zip(scored["sparse"], scored["dense"], strict=True)]
    tokens = runs[f"{RECORDED['sparse']}-0"]["tokens"]
    messages.print(
        f"text, record {RECORD}: dense less sparse {', '.join(f'{gain:+.3f}' for gain in gains)} bits per byte"
    )
    race = {"source": f"record {RECORD}", "steps": curves["sparse"][-1]["step"], "tokens": tokens, "protocol": "full"}
    return {"models": models, "race": race | {"gains": gains, "curves": curves}}


def live_race(
    seed: int, corpus: list[Document], validation: list[Document], tokenizer: Tokenizer
) -> tuple[dict[str, Any], MoETransformer] | None:
    """Trains both models in this process.

    Returns:
      As `recorded_race`, the models also with ``tokens_per_second`` and ``seconds``; and the sparse model. None after
      Ctrl-C.
    """
    from minimoe.data import describe_data, training_data
    from minimoe.progress import train_with_bar
    from minimoe.training.new_run import describe_run, make_run

    data, source = training_data(corpus, tokenizer), describe_data(None, validation)
    changes = {"steps": STEPS, "seed": seed, "log_every": max(1, STEPS // 60), "checkpoint_every": 0}
    curves, models, trained = {}, [], {}
    for name in RECORDED:
        run = make_run("nano", changes, dense=name == "dense", dropout=None, tokenizer=tokenizer, data=source)
        messages.print(f"{name}: {describe_run(run)}")
        began = time.monotonic()
        result = train_with_bar(name, run, data, validation, tokenizer)
        if result.interrupted:
            return None
        assert result.evaluation is not None
        curves[name], trained[name] = result.records, result.model
        speed = statistics.median(point["tokens_per_second"] for point in result.records if point["kind"] == "train")
        measured = {"bits_per_byte": result.evaluation.bits_per_byte, "tokens_per_second": speed}
        models.append(_sizes(name, run.model) | measured | {"seconds": round(time.monotonic() - began, 1)})
        tokens = run.recipe.steps * run.recipe.batch_size * run.model.context_length
    gains = [models[1]["bits_per_byte"] - models[0]["bits_per_byte"]]
    race = {"source": "this run", "steps": STEPS, "tokens": tokens, "protocol": "quick", "gains": gains}
    return {"models": models, "race": race | {"curves": curves}}, trained["sparse"]


def _sizes(name: str, config: ModelConfig) -> dict[str, Any]:
    from minimoe.cost import count_params, forward_flops_per_token

    count = count_params(config)
    sizes = {"total_params": count.total, "active_params": count.active}
    return {"name": name} | sizes | {"flops_per_token": forward_flops_per_token(config)}
