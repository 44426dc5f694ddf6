"""The words of the tour's report. Every number in them comes from the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minimoe.tour.html import Picture, Sample, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page(values: dict[str, Any], figures: dict[str, Figure]) -> dict[str, Any]:
    """Arguments of `minimoe.tour.html.write_report`."""
    sparse, dense = values["models"]
    return {
        "title": "minimoe: the tour",
        "lead": _lead(values),
        "sections": [
            _claims(values, figures),
            _samples(values),
            _facts(values),
            _sizes(sparse, dense, figures),
            _race(sparse, dense, figures),
            _clock(sparse, dense, figures),
            _experts(values, figures),
            _balance(values, figures),
            _quality(values, figures),
            _bits(values, figures),
            _taught(values),
            _solved(values),
        ],
    }


def _lead(values: dict[str, Any]) -> str:
    short = (
        " This was the fast tour: far too short to learn much, enough to see that everything works."
        if values["fast"]
        else ""
    )
    return (
        f"A sparse Mixture of Experts and a dense model of equal active FLOPs, trained on the same {values['tokens']:,} "
        f"tokens of six kinds of text; before that, small layers that learn facts and two models of the package that solve "
        f"problems (seed {values['seed']}, {values['seconds']:.0f} seconds in all on {values['machine']}). Every number on "
        f"this page was measured in that run, except where it says record.{short}"
    )


def _sizes(sparse: dict[str, Any], dense: dict[str, Any], figures: dict[str, Figure]) -> Section:
    share = sparse["active_params"] / sparse["total_params"]
    rows = [
        (
            row["name"],
            f"{row['total_params']:,}",
            f"{row['active_params']:,}",
            f"{row['flops_per_token'] / 1e6:.2f}",
            f"{row['bits_per_byte']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
        )
        for row in (sparse, dense)
    ]
    return Section(
        heading="Many parameters, few at work",
        paragraphs=(
            f"The sparse model stores {sparse['total_params'] / 1e6:.2f} million parameters and multiplies each token with "
            f"{sparse['active_params'] / 1e6:.2f} million of them ({share:.0%}). The dense model has the same width where "
            f"the sparse one has active experts, so both spend about the same arithmetic on a token.",
        ),
        picture=Picture(
            figures["ladder"],
            "Total and active parameters, FLOPs of a forward pass per token (from the formulas), bits per byte.",
        ),
        table=Table(("model", "parameters", "active", "MFLOPs/token", "bits/byte", "training tokens/s"), rows),
    )


def _race(sparse: dict[str, Any], dense: dict[str, Any], figures: dict[str, Figure]) -> Section:
    gain = dense["bits_per_byte"] - sparse["bits_per_byte"]
    better = "better" if gain > 0 else "worse"
    return Section(
        heading="Sparse against dense, at equal tokens",
        paragraphs=(
            f"At equal tokens and equal active FLOPs the sparse model ends {abs(gain):.3f} bits per byte {better} "
            f"({sparse['bits_per_byte']:.3f} against {dense['bits_per_byte']:.3f}).",
        ),
        picture=Picture(figures["loss_by_tokens"], "Training loss against tokens, smoothed; faint: each logged step."),
    )


def _clock(sparse: dict[str, Any], dense: dict[str, Any], figures: dict[str, Figure]) -> Section:
    ratio = dense["tokens_per_second"] / sparse["tokens_per_second"]
    return Section(
        heading="The same runs against the clock",
        paragraphs=(
            f"Equal FLOPs are not equal time: on this machine the dense model trains at {ratio:.2f} times the tokens per "
            f"second of the sparse one. Routing, sorting and smaller matrix products cost something, and every expert's "
            f"weights must be updated. Whether the sparse model is worth it depends on which axis you pay for.",
        ),
        picture=Picture(figures["loss_by_seconds"], "Training loss against seconds of training, compilation included."),
    )


def _experts(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    import numpy as np

    load = np.asarray(values["load"])
    relative = load / load.sum(axis=-1, keepdims=True) * load.shape[-1]
    domain, layer, expert = np.unravel_index(int(relative.argmax()), relative.shape)
    return Section(
        heading="Where the experts went",
        paragraphs=(
            f"Nobody told the router about domains. On validation text, expert {expert} of layer {layer} takes "
            f"{relative.max():.1f} times its even share of {values['domains'][domain]}; that is the strongest preference. "
            f"A row of ones would mean that a domain uses all experts alike.",
        ),
        picture=Picture(
            figures["experts_by_domain"],
            "Each expert's share of a domain's traffic, relative to an even split, on validation text.",
        ),
    )


def _balance(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    worst = max(values["max_violation_validation"])
    return Section(
        heading="Balance over time",
        paragraphs=(
            f"MaxVio is the load of the busiest expert over the mean load, less 1. A bias on the selection score, moved a "
            f"little after every step, keeps it down without touching the loss. On validation text the least balanced "
            f"layer ends at {worst:.2f}. Single batches are small and mix few documents, so their values scatter.",
        ),
        picture=Picture(figures["balance"], "MaxVio of every layer during training, by batch."),
    )


def _quality(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    sparse, dense = values["models"]
    ngram = values["byte_ngram"]
    return Section(
        heading="Bits per byte by domain",
        paragraphs=(
            f"The sparse model reaches {sparse['bits_per_byte']:.3f}, the dense one {dense['bits_per_byte']:.3f} (means "
            f"over domains). The marks are a byte {ngram['order']}-gram model that counted the same training text in "
            f"seconds ({ngram['bits_per_byte']:.3f}): a neural model this small needs more than a few minutes to pass it.",
        ),
        picture=Picture(figures["bits_per_byte"], "Bits per byte on the quick validation subset; lower is better."),
    )


def _bits(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    float32, recipes = values["models"][0]["bits_per_byte"], values["quantized"]["recipes"]
    full = values["quantized"]["bytes_bfloat16"]
    smallest = min(recipes, key=lambda row: row["bytes"])
    rows = [("bfloat16 (size only)", f"{full / 1e6:.2f}", "1.00", "-", "-")] + [
        (
            row["name"],
            f"{row['file_bytes'] / 1e6:.2f}",
            f"{full / row['bytes']:.2f}",
            f"{row['bits_per_byte']:.3f}",
            f"{row['routing_changed']:.1%}",
        )
        for row in recipes
    ]
    return Section(
        heading="The same model in fewer bits",
        paragraphs=(
            f"Weights do not need 16 bits. Each line of the table was quantized, written to a file, read back and scored: "
            f"the float model needs {float32:.3f} bits per byte, {smallest['name']} {smallest['bits_per_byte']:.3f} in "
            f"{full / smallest['bytes']:.1f} times fewer bytes than bfloat16. In this run small means small, not fast: FP8 "
            f"and FP4 are emulated on a CPU, and the command minimoe bench quant measures where int8 saves time.",
        ),
        picture=Picture(figures["bytes"], "Bytes by part of the model, scales included."),
        table=Table(("stored as", "MB in the file", "times smaller", "bits/byte", "routes changed"), rows),
    )


def _taught(values: dict[str, Any]) -> Section:
    taught, before = values["distilled"], values["models"][0]["bits_per_byte"]
    alone, helped = taught["ways"]
    gained, help_gained = before - alone["bits_per_byte"], before - helped["bits_per_byte"]
    rows = [("before", f"{before:.3f}", "-")] + [
        (row["name"], f"{row['bits_per_byte']:.3f}", f"{row['seconds']:.0f}") for row in taught["ways"]
    ]
    rows.append((f"the teacher, {taught['teacher']}", f"{taught['teacher_bits_per_byte']:.3f}", "-"))
    return Section(
        heading="With a teacher",
        paragraphs=(
            f"The sparse model goes on for {taught['steps']} steps, twice, on the same batches: alone, and with "
            f"{taught['alpha']:.0%} of its loss from what a larger model of the package thinks of every word. Alone it "
            f"gains {gained:+.3f} bits per byte, with the teacher {help_gained:+.3f}, in {alone['seconds']:.0f} and "
            f"{helped['seconds']:.0f} seconds. A few steps show the way and not how far it goes: lesson 05 goes further.",
        ),
        table=Table(("", "bits/byte", "seconds"), rows),
    )


def _samples(values: dict[str, Any]) -> Section:
    blocks = [Sample(f"{s['prompt']}\u258c{s['continuation']}", label=s["domain"]) for s in values["samples"]]
    return Section(
        heading="What a trained model writes",
        paragraphs=(
            "A model of the package continues the beginning of an unseen document of each domain, after the bar.",
        ),
        samples=tuple(blocks),
    )


def _claims(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    rows = [(row["claim"], row["verdict"], row["numbers"], row["source"]) for row in values["claims"]]
    return Section(
        heading="What was claimed, and what we found",
        paragraphs=(
            "The press reported the claims about a model of a thousand billion parameters. The verdicts are about models "
            "that train on a laptop. A record is a longer experiment with three seeds; minimoe experiments show NAME "
            "prints it.",
        ),
        picture=Picture(
            figures["facts"],
            "Facts learned in this run, one dot a seed. Apart from the router, all three layers compute equally much.",
        ),
        table=Table(("claim", "verdict", "numbers", "from"), rows),
    )


def _facts(values: dict[str, Any]) -> Section:
    facts = values["facts"]
    rows = [
        (
            way["name"],
            f"{way['total_params']:,}",
            f"{way['active_params']:,}",
            *(f"{share:.1%}" for share in way["recalled"]),
        )
        for way in facts["ways"]
    ]
    return Section(
        heading="Facts learned by heart",
        paragraphs=(
            f"A fact is a random name and one of {facts['answers']} answers, so guessing is right once in "
            f"{facts['answers']}. Each layer read all {facts['facts']:,} facts {facts['steps']} times. The sparse layers "
            f"store more and compute as much: this is what idle parameters buy.",
        ),
        table=Table(("layer", "parameters", "active", "seed 0", "seed 1", "seed 2"), rows),
    )


def _solved(values: dict[str, Any]) -> Section:
    solved = values["solved"]
    rows = [
        (
            one["question"],
            str(one["answer"]),
            *(str(one[name] if one[name] is not None else "-") for name in solved["right"]),
        )
        for one in solved["problems"]
    ]
    counts = ", ".join(f"{name} {count}" for name, count in solved["right"].items())
    return Section(
        heading="Ten problems",
        paragraphs=(
            f"The package's student learned from the steps and the logits of a larger teacher; nano is what it was before. "
            f"Solved, of {len(rows)}: {counts}. Each problem needs a combination of numbers that training never showed.",
        ),
        table=Table(("problem", "answer", *solved["right"]), rows),
    )
