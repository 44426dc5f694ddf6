"""``minimoe train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minimoe.cli import run_options as option
from minimoe.console import messages, print_json, start, write_out
from minimoe.errors import UserError

if TYPE_CHECKING:
    from minimoe.training import RunConfig, TaskEvaluation, TrainResult


Preset = Annotated[
    str, typer.Option(help="Preset: nano (2.2M parameters), small (11.4M), v4-nano (2.9M) or v4-small (14.5M).")
]
Balance = Annotated[
    str | None,
    typer.Option(help="none, switch, sequence, loss-free or loss-free+sequence; the preset's if not given."),
]
Dense = Annotated[bool, typer.Option("--dense", help="Train the dense model of equal active FLOPs instead.")]
Mtp = Annotated[
    bool,
    typer.Option(
        "--mtp",
        help="Add a head that `generate --speculative` needs: multi-token prediction. V4's presets have theirs.",
    ),
]
Mesh = Annotated[
    str | None,
    typer.Option(help="Devices by axis, such as data=2,expert=4 (also tensor); one device if not given."),
]
Coordinator = Annotated[
    str | None,
    typer.Option(envvar="MINIMOE_COORDINATOR", help="HOST:PORT of process 0, if several train one model."),
]
Process = Annotated[
    int | None, typer.Option(envvar="MINIMOE_PROCESS", help="Which this one is, from 0; process 0 alone writes.")
]


def train(
    out: option.Out,
    config: Preset = "nano",
    steps: option.Steps = None,
    seed: Annotated[int, typer.Option(help="Decides weights, order of data and dropout.")] = 0,
    batch_size: option.BatchSize = None,
    learning_rate: option.LearningRate = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, or muon for matrices; adamw if not given.")] = None,
    dropout: Annotated[float | None, typer.Option(help="On both branches of each block; 0 for none.")] = None,
    balance: Balance = None,
    dense: Dense = False,
    mtp: Mtp = False,
    text: option.Text = None,
    tasks: option.Tasks = 0.0,
    tokenizer: Annotated[str, typer.Option(help="bpe2048, byte, or a tokenizer.json.")] = "bpe2048",
    mesh: Mesh = None,
    coordinator: Coordinator = None,
    processes: Annotated[int | None, typer.Option(envvar="MINIMOE_PROCESSES", help="How many they are.")] = None,
    process: Process = None,
    checkpoint_every: option.CheckpointEvery = None,
    eval_every: option.EvalEvery = None,
    resume: option.Resume = False,
    json: option.Json = False,
) -> int:
    """Train a model on text, from scratch or from its last checkpoint.

    Ctrl-C saves and stops; --resume continues and gives the same model as an unbroken run. --balance says how experts
    are kept in work: by the balance loss over the batch (switch) or within each sequence, or by the selection bias. With
    --tasks the model answers reasoning problems in the end and is graded. With --mesh the losses are the same to
    rounding; devices can be simulated: XLA_FLAGS=--xla_force_host_platform_device_count=8. Several processes train one
    model if each is started with the same command but for --process.

    Example: minimoe train --config nano --steps 500 --out runs/nano

    Example: minimoe train --mesh data=2 --out runs/two --coordinator 127.0.0.1:7777 --processes 2 --process 0
    """
    from minimoe.cli.copies import tell_copies
    from minimoe.cli.reasoning import check_length, check_share
    from minimoe.data import choose_documents, describe_data, load_tokenizer
    from minimoe.parallel import join, placement
    from minimoe.progress import check_resume, draw_curve, grade, train_with_bar
    from minimoe.training import BALANCE_METHODS
    from minimoe.training.mixing import mixed_data
    from minimoe.training.new_run import describe_run, make_run

    if balance is not None and balance not in BALANCE_METHODS:
        raise UserError(f"--balance {balance!r} is not known; choose one of {', '.join(BALANCE_METHODS)}")
    check_share(tasks)
    writes = join(coordinator, processes, process, mesh)
    tokens = load_tokenizer(tokenizer)
    changes: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    changes |= {"optimizer": optimizer}
    changes |= BALANCE_METHODS[balance] if balance else {}
    changes |= {"checkpoint_every": checkpoint_every, "eval_every": eval_every}
    documents = choose_documents(text)
    about = describe_data(text, documents) | ({"tasks": tasks} if tasks else {})
    run = make_run(config, changes, dense=dense, dropout=dropout, tokenizer=tokens, data=about, mtp=mtp)
    if tasks:
        check_length(run, tokens)
    placement(mesh, run.model, run.recipe.batch_size)  # refused before anything is read
    first = check_resume(out, run, resume, method=True) if writes else 0
    data, validation = mixed_data(documents, tokens, run, tasks)
    start(f"{config}{' (dense)' if dense else ''}: {describe_run(run)}; {data.num_tokens:,} training tokens")
    tell_copies(text, documents)
    result = train_with_bar("train", run, data, validation, tokens, first=first, out=out, resume=resume, mesh=mesh)
    if not writes:
        return 130 if result.interrupted else 0
    draw_curve(out, result)
    answers = grade(result.model, tokens) if tasks and not result.interrupted else None
    return report(out, run, result, json, answers)


def report(
    out: Path,
    run: RunConfig,
    result: TrainResult,
    json: bool,
    answers: TaskEvaluation | None = None,
    names: Mapping[str, str] | None = None,
) -> int:
    """Prints how it ended; the exit code is 130 after Ctrl-C.

    Args:
      answers: to reasoning problems, if they were asked. names: whatever else the JSON shall say.
    """
    trained = [record for record in result.records if record["kind"] == "train"]
    values: dict[str, Any] = {"out": str(out), **(names or {}), "step": result.step, "interrupted": result.interrupted}
    values |= {"steps": run.recipe.steps, "tokens": result.step * run.recipe.batch_size * run.model.context_length}
    values |= {"seconds": trained[-1]["seconds"], "loss": trained[-1]["loss"]} if trained else {}
    if result.evaluation is not None:
        values |= {"protocol": "quick"} | result.evaluation.to_record()
    values |= {"tasks": None if answers is None else answers.to_record()}
    if json:
        print_json(values)
    if result.interrupted:
        messages.print(f"stopped after step {result.step}; the same command with --resume continues")
        return 130
    if not json:
        if result.evaluation is not None:
            write_out(f"{result.evaluation.bits_per_byte:.3f} bits per byte (mean over domains, quick protocol)")
        if answers is not None:
            by_level = ", ".join(f"level {level} {share:.0%}" for level, share in answers.exact_match.items())
            write_out(f"{answers.mean_exact_match:.1%} of reasoning problems right: {by_level}")
        write_out(f"{out}: checkpoints, metrics.jsonl, curve.png")
    return 0
