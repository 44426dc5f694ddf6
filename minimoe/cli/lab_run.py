"""One run of an experiment: trained or continued, scored, and put into the form of a record."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from minimoe.cli.lab_distill import WRITTEN_FORMS, finished, solutions, teacher_hooks, teachers_text, training_text
from minimoe.cli.lab_trials import Trial
from minimoe.console import messages

GRADED = 100  # validation problems of each level, so that one more is a percentage point
FORMS = ("worked", "direct")


def run_trial(trial: Trial, work: Path, out: Path) -> dict[str, Any] | None:
    """Trains (or continues) one run in ``out`` and scores it; None after Ctrl-C.

    Args:
      work: folder of all experiments, where the models are that this run begins from or learns from.

    Raises:
      UserError: if one of those is not there yet.
    """
    from minimoe.cli.train import check_resume
    from minimoe.data import describe_data, documents, load_tokenizer
    from minimoe.progress import draw_curve, train_with_bar
    from minimoe.training.checkpoint import prepare_folder, write_run_config
    from minimoe.training.new_run import describe_run, make_run

    tokenizer, corpus = load_tokenizer(), documents()
    source: dict[str, Any] = dict(describe_data(None, corpus))
    source |= {key: value for key, value in trial.method().items() if value}  # so that it is not resumed by another
    run = make_run(trial.preset, dict(trial.changes), dense=trial.dense, dropout=None, tokenizer=tokenizer, data=source)
    if trial.experts:
        run = dataclasses.replace(run, model=run.model.replace_moe(**trial.experts))
    prepare_folder(out)
    first = check_resume(out, run, resume=True)
    if not first:
        write_run_config(out, run, tokenizer)
    messages.print(f"{trial.name}: {describe_run(run)}")
    validation = [document for document in corpus if document.split == "val"]
    data = training_text(trial, run, corpus, tokenizer, work)
    hooks = _hooks(trial, run, data, tokenizer, work)
    result = train_with_bar(trial.name, run, data, validation, tokenizer, first=first, out=out, resume=True, **hooks)
    draw_curve(out, result)
    if result.interrupted:
        return None
    outcome = _outcome(trial, run, result, validation, tokenizer)
    if trial.form in WRITTEN_FORMS:
        outcome |= teachers_text(trial, solutions(work, trial, tokenizer))
    return outcome


def _hooks(trial: Trial, run: Any, data: Any, tokenizer: Any, work: Path) -> dict[str, Any]:
    """What this trial changes in training, as arguments of `minimoe.training.train`.

    Raises:
      UserError: if it continues, or learns from, a run that is not there.
    """
    hooks: dict[str, Any] = {}
    prepare: list[Any] = []
    if (start := trial.start) is not None:
        prepare.append(lambda fresh: finished(work, start))
    if trial.fp8:
        from minimoe.quant.fp8_training import with_fp8_training

        prepare.append(with_fp8_training)
    if prepare:
        hooks["prepare"] = lambda fresh: functools.reduce(lambda model, change: change(model), prepare, fresh)
    if trial.qat is not None:
        from flax import nnx

        from minimoe import MoETransformer
        from minimoe.quant.qat import qat_transform

        shapes = nnx.eval_shape(lambda: MoETransformer(run.model, rngs=nnx.Rngs(0)))
        hooks |= {"transform_params": qat_transform(shapes, trial.qat), "transform_from": trial.qat_from}
    if trial.teachers:
        hooks |= teacher_hooks(trial, run, data, tokenizer, work)
    return hooks


def _outcome(trial: Trial, run: Any, result: Any, validation: list[Any], tokenizer: Any) -> dict[str, Any]:
    """What goes into the record: config, both protocols, time, and the curve."""
    import os
    import platform

    from minimoe.cost import count_params, forward_flops_per_token
    from minimoe.data import evaluation_documents
    from minimoe.training import evaluate

    documents = evaluation_documents(validation, "full")
    full = evaluate(result.model, documents, tokenizer)
    quantized = None
    if trial.quantized is not None:
        from minimoe.quant.models import quantize_model

        quantized = evaluate(quantize_model(result.model, trial.quantized), documents, tokenizer).to_record()
    answers = {}
    if trial.tasks:
        from minimoe.cli.reasoning import grade

        answers = {form: grade(result.model, tokenizer, form, GRADED).to_record() for form in FORMS}
    count = count_params(run.model)
    curve = [record for record in result.records if record["kind"] == "train"]
    evals = [record for record in result.records if record["kind"] == "eval"]
    return {
        "config": run.to_dict(),
        "method": trial.method(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "total_params": count.total,
        "active_params": count.active,
        "flops_per_token": forward_flops_per_token(run.model),
        "tokens": result.step * run.recipe.batch_size * run.model.context_length,
        "train_seconds": curve[-1]["seconds"],
        "quick": result.evaluation.to_record() if result.evaluation else None,
        "full": full.to_record(),
        "quantized": quantized,
        "tasks": answers,
        "routing": _routing(full, curve) if run.model.moe else None,
        "curve": curve + evals,
    }


def _routing(full: Any, curve: list[dict[str, Any]]) -> dict[str, Any]:
    """Balance and specialisation, one number a layer.

    ``max_violation_batch``: mean over the last tenth of the logged training batches. ``max_violation_global``: of the
    counts of the whole validation text. ``mutual_information``: of expert and domain there, in bits.
    """
    import jax.numpy as jnp
    import numpy as np

    from minimoe.moe import max_violation, mutual_information

    load = jnp.asarray(full.load)  # [domains, layers, E]
    late = [record["max_violation"] for record in curve[-max(1, len(curve) // 10) :]]
    values = {
        "max_violation_batch": np.mean(late, axis=0),
        "max_violation_global": max_violation(load.sum(axis=0)),
        "mutual_information": mutual_information(load.swapaxes(0, 1)),
    }
    return {name: [round(float(v), 4) for v in value] for name, value in values.items()}
