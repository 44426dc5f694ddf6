"""The words of the tour's report. Every number in them comes from the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minimoe.tour.html import Link, Picture, Sample, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def page(values: dict[str, Any], figures: dict[str, Figure]) -> dict[str, Any]:
    """Arguments of `minimoe.tour.html.write_report`."""
    return {
        "title": "minimoe: the tour",
        "lead": _lead(values),
        "sections": [
            _claims(values, figures),
            _samples(values),
            _experts(values, figures),
            _solved(values),
            _facts(values),
            _collapse(values, figures),
            _bits(values, figures),
            _caches(values, figures),
            _sizes(values, figures),
            *_races(values, figures),
            _microscope(values),
            _costs(values),
        ],
    }


def _lead(values: dict[str, Any]) -> str:
    short = (
        " This was the fast tour: smaller books, shorter texts, and the race over text from a record."
        if values["fast"]
        else ""
    )
    return (
        f"Each claim of the press about sparse models, tried on a laptop: {values['seconds']:.0f} seconds on "
        f"{values['machine']}, seed {values['seed']}. Every number on this page was measured in that run, except where "
        f"it says record.{short}"
    )


def _cost(values: dict[str, Any], *parts: str) -> str:
    """The seconds of the parts whose names begin so."""
    seconds = sum(took for name, took in values["seconds_by_part"].items() if name.startswith(parts))
    return f"Cost: {seconds:.0f} seconds of this tour, loading and compilation included."


def _sizes(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    sparse, dense = values["models"]
    share = sparse["active_params"] / sparse["total_params"]
    rows = [
        (
            row["name"],
            f"{row['total_params']:,}",
            f"{row['active_params']:,}",
            f"{row['flops_per_token'] / 1e6:.2f}",
            f"{row['bits_per_byte']:.3f}",
        )
        for row in (sparse, dense)
    ]
    return Section(
        heading="Many parameters, few at work",
        paragraphs=(
            f"The sparse model stores {sparse['total_params'] / 1e6:.2f} million parameters and multiplies each token with "
            f"{sparse['active_params'] / 1e6:.2f} million of them ({share:.0%}). The dense model has the same width where "
            f"the sparse one has active experts, so both spend about the same arithmetic on a token. Both read the same "
            f"{values['race']['tokens']:,} tokens of six kinds of text ({values['race']['source']}).",
            f"Cost of the idle parameters: {sparse['total_params'] / dense['total_params']:.1f} times the memory of the "
            f"dense model.",
        ),
        picture=Picture(
            figures["ladder"],
            "Total and active parameters, FLOPs of a forward pass per token (from the formulas), bits per byte.",
        ),
        table=Table(("model", "parameters", "active", "MFLOPs/token", "bits/byte"), rows),
    )


def _races(values: dict[str, Any], figures: dict[str, Figure]) -> list[Section]:
    if values["race"]["source"] == "this run":
        return [_live(values, figures), _clock(values, figures)]
    race = values["race"]
    gains = ", ".join(f"{gain:+.3f}" for gain in race["gains"])
    won = sum(gain > 0 for gain in race["gains"])
    return [
        Section(
            heading="Sparse against dense, at equal tokens",
            paragraphs=(
                f"Text takes longer to learn than this tour has time for, so these runs are recorded: {race['tokens']:,} "
                f"tokens, {len(race['gains'])} seeds each. Bits per byte of the dense model less those of the sparse one, by "
                f"seed: {gains}. The sparse model is better with {won} of {len(race['gains'])} seeds.",
                "Cost: equal tokens are not equal time. The first table has both. minimoe tour without --fast trains both "
                "models live and shows the clock.",
            ),
            picture=Picture(figures["bits_by_tokens"], f"Bits per byte while they learn, from the {race['source']}."),
        )
    ]


def _live(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    sparse, dense = values["models"]
    gain = dense["bits_per_byte"] - sparse["bits_per_byte"]
    better = "better" if gain > 0 else "worse"
    return Section(
        heading="Sparse against dense, at equal tokens",
        paragraphs=(
            f"At equal tokens and equal active FLOPs the sparse model ends {abs(gain):.3f} bits per byte {better} "
            f"({sparse['bits_per_byte']:.3f} against {dense['bits_per_byte']:.3f}). One pair of runs proves nothing: in "
            f"the record longer-text, seeds alone move such a gap by several hundredths.",
            _cost(values, "a sparse"),
        ),
        picture=Picture(figures["loss_by_tokens"], "Training loss against tokens, smoothed; faint: each logged step."),
    )


def _clock(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    sparse, dense = values["models"]
    ratio = dense["tokens_per_second"] / sparse["tokens_per_second"]
    return Section(
        heading="The same runs against the clock",
        paragraphs=(
            f"Equal FLOPs are not equal time: on this machine the dense model trains at {ratio:.2f} times the tokens per "
            f"second of the sparse one. Routing, sorting and smaller matrix products take time, and the weights of every "
            f"expert are updated. The better model depends on what you pay for: tokens, or seconds.",
            f"Cost: sparse {sparse['tokens_per_second']:,.0f} tokens per second, dense "
            f"{dense['tokens_per_second']:,.0f}.",
        ),
        picture=Picture(figures["loss_by_seconds"], "Training loss against seconds of training, compilation included."),
    )


def _microscope(values: dict[str, Any]) -> Section:
    from minimoe.tour.report import MICROSCOPE_FILE

    which = (
        f"the sparse model that this tour trained, with what it knows after {values['race']['steps']} steps"
        if values["microscope"]["trained_here"]
        else f"{values['microscope']['model']}, a model of the package, since the fast tour trains none on text"
    )
    return Section(
        heading="Look inside",
        paragraphs=(
            f"The file {MICROSCOPE_FILE} beside this page holds {which}, and the code that runs it in the browser. Type, and "
            f"see which experts each token takes; switch an expert off, or move its selection bias.",
        ),
        link=Link(MICROSCOPE_FILE, "Open the router microscope"),
    )


def _experts(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    import numpy as np

    load = np.asarray(values["load"])
    relative = load / load.sum(axis=-1, keepdims=True) * load.shape[-1]
    domain, layer, expert = np.unravel_index(int(relative.argmax()), relative.shape)
    return Section(
        heading="Where its tokens go",
        paragraphs=(
            f"Nobody told the router about domains. On validation text, expert {expert} of layer {layer} of "
            f"{values['writer']} takes {relative.max():.1f} times its even share of {values['domains'][domain]}. That is "
            f"the strongest preference. A row of ones would mean that a domain uses all experts alike.",
            _cost(values, "where its tokens"),
        ),
        picture=Picture(
            figures["experts_by_domain"],
            "Each expert's share of a domain's traffic, relative to an even split, on validation text.",
        ),
    )


def _collapse(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    rung = values["collapse"]
    none, bias = rung["ways"]
    rows = [
        (
            way["name"],
            *(f"{share:.1%}" for share in way["recalled"]),
            ", ".join(f"{value:.1f}" for value in way["max_violation"]),
            f"{way['seconds']:.0f}",
        )
        for way in rung["ways"]
    ]
    return Section(
        heading="A collapse, and its cure",
        paragraphs=(
            f"The same {rung['facts']:,} facts and {rung['experts']} experts, but now all names share one large vector. "
            f"The router begins with the same favourites for every name. Without balancing the favourites keep the work, "
            f"and the idle experts learn nothing. The cure is a bias on the selection score, moved a little after "
            f"every step. The two ways differ in nothing else.",
            f"MaxVio is the load of the busiest expert over the mean load, less 1. It is 0 when even, and at most "
            f"{rung['experts'] / 2 - 1:.0f} here.",
            f"Cost of the bias: {rung['experts']} additions a step; {bias['seconds']:.0f} seconds for three seeds, and "
            f"{none['seconds']:.0f} without it.",
        ),
        picture=Picture(figures["collapse"], "MaxVio at every step, seed 0; the facts recalled are in the table."),
        table=Table(("", "recalled, seed 0", "seed 1", "seed 2", "last MaxVio by seed", "seconds"), rows),
    )


def _bits(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    rung = values["quantized"]
    before, full, asked = rung["before"], rung["bytes_bfloat16"], rung["asked"]
    rows = [
        ("bfloat16 (size only)", f"{full / 1e6:.2f}", "1.00", "-", "-", "-"),
        ("float32, the decoded model", "-", "-", f"{before['bits_per_byte']:.3f}", f"{before['solved']}", "-"),
    ]
    rows += [
        (
            row["name"],
            f"{row['file_bytes'] / 1e6:.2f}",
            f"{full / row['bytes']:.2f}",
            f"{row['bits_per_byte']:.3f}",
            f"{row['solved']}",
            f"{row['seconds']:.0f}",
        )
        for row in rung["recipes"]
    ]
    header = ["stored as", "MB in the file", "times smaller", "bits/byte", f"solved of {asked}", "seconds"]
    solving = (
        f"{values['writer']} was never trained on problems. They are answered by teacher, a model of the same size that went "
        f"on from its weights, stored by the same recipe. {asked} problems show large losses only."
    )
    if not asked:
        rows, header = [(*row[:4], *row[5:]) for row in rows], [*header[:4], *header[5:]]
        solving = "The fast tour asks no problems here, because a few problems would show large losses only."
    return Section(
        heading="The same model in fewer bits",
        paragraphs=(
            f"Weights do not need 16 bits. Each recipe was applied to {values['writer']}, written to a file, read back and "
            f"scored on {before['num_bytes']:,} bytes of validation text.",
            f"{solving} The first table has the losses over more problems, from a record.",
            "Cost: fewer bits are not faster here. FP8 and FP4 are emulated on a CPU. The command minimoe bench quant "
            "measures where int8 saves time.",
        ),
        picture=Picture(figures["bytes"], "Bytes by part of the model, scales included."),
        table=Table(header, rows),
    )


def _caches(values: dict[str, Any], figures: dict[str, Figure]) -> Section:
    rung = values["caches"]
    published = rung["published"]
    old, new = published["names"]
    contexts = [f"{context:,} tokens" for context in rung["contexts"]]
    rows = [
        (one["name"], f"{one['bytes_per_token']:,.0f}", *(f"{size:,}" for size in one["bytes"])) for one in rung["ours"]
    ]
    grouped, compressed = rung["ours"][:2]
    ratios = ", ".join(f"{ratio:.2f} at {int(context):,} tokens" for context, ratio in published["ratios"].items())
    wrote = rung["written"]
    return Section(
        heading="What a model keeps of a text",
        paragraphs=(
            "To write the next token a model keeps keys and values of all tokens before it: the KV cache. nano and small "
            "keep them for every token (grouped-query attention). v4-nano and v4-small have their widths and DeepSeek-V4's "
            "attention: a window of the last tokens, and one learnt entry for 4 or 16 older ones.",
            f"One more token costs {grouped['name']} {grouped['bytes_per_token'] / compressed['bytes_per_token']:.0f} "
            f"times the bytes of {compressed['name']}. A short text shows less of it, because the window costs the same "
            f"at any length. The table weighs the arrays themselves.",
            f"{wrote['model']}{'' if wrote['trained'] else ', untrained,'} wrote {wrote['new_tokens']} tokens from its cache."
            f" One pass over the whole text, without a cache, gives {wrote['agreeing']} of the {wrote['new_tokens']} again. "
            f"The cache of these {wrote['tokens']} tokens has {wrote['bytes']:,} bytes; that of {wrote['plain']} has "
            f"{wrote['plain_bytes']:,}.",
            f"The figure has the published models by the same formula. {new} keeps fewer bytes than {old} by a factor of "
            f"{ratios}. Below {published['crossing']:,} tokens it keeps more.",
            "Cost: an entry stands for several tokens. Whether a model misses what the entry leaves out is not measured "
            "here. Lesson 06 builds the cache.",
        ),
        picture=Picture(figures["caches"], "Bytes kept of one sequence, computed from the published sizes."),
        table=Table(
            ("float32, all layers", "one more token", *contexts), rows, caption="Bytes of one sequence's cache"
        ),
    )


def _costs(values: dict[str, Any]) -> Section:
    rows = [(name, f"{seconds:.0f}") for name, seconds in values["seconds_by_part"].items()]
    return Section(
        heading="What each part cost",
        paragraphs=("Loading and compilation are included: of a short part they are most.",),
        table=Table(("part", "seconds"), [*rows, ("all", f"{values['seconds']:.0f}")]),
    )


def _samples(values: dict[str, Any]) -> Section:
    blocks = [Sample(f"{s['prompt']}\u258c{s['continuation']}", label=s["domain"]) for s in values["samples"]]
    return Section(
        heading="What a trained model writes",
        paragraphs=(
            f"{values['writer']}, a model of the package, continues the beginning of an unseen document of each domain, "
            f"after the bar.",
            _cost(values, "a trained model"),
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
        table=Table(("claim", "verdict", "numbers", "from"), rows, stacked=True),
    )


def _facts(values: dict[str, Any]) -> Section:
    facts = values["facts"]
    dense, most = facts["ways"][0], facts["ways"][-1]
    rows = [
        (
            way["name"],
            f"{way['total_params']:,}",
            f"{way['active_params']:,}",
            *(f"{share:.1%}" for share in way["recalled"]),
            f"{way['seconds']:.0f}",
        )
        for way in facts["ways"]
    ]
    return Section(
        heading="Facts learned by heart",
        paragraphs=(
            f"A fact is a random name and one of {facts['answers']} answers, so guessing is right once in "
            f"{facts['answers']}. Each layer read all {facts['facts']:,} facts {facts['steps']} times. The sparse layers "
            f"store more and compute as much. The figure at the top of this page shows what that buys.",
            f"Cost of {most['name']}: {most['total_params'] / dense['total_params']:.1f} times the parameters of the dense "
            f"layer, and {most['seconds']:.0f} seconds against {dense['seconds']:.0f}. This layer computes every expert "
            f"for every name, because that is simplest.",
        ),
        table=Table(("layer", "parameters", "active", "seed 0", "seed 1", "seed 2", "seconds"), rows),
    )


def _solved(values: dict[str, Any]) -> Section:
    solved = values["solved"]
    rows = [
        (
            one["question"],
            str(one["answer"]),
            *(_marked(one[name], one["answer"]) for name in solved["right"]),
        )
        for one in solved["problems"]
    ]
    counts = ", ".join(f"{name} {count}" for name, count in solved["right"].items())
    size = ", ".join(f"{name} {count / 1e6:.2f} million" for name, count in solved["parameters"].items())
    seconds = ", ".join(f"{name} {took:.0f}" for name, took in solved["seconds"].items())
    return Section(
        heading="Ten problems",
        paragraphs=(
            f"The package's student learned from the steps and the logits of a larger teacher; nano is what it was before. "
            f"Solved, of {len(rows)}: {counts}. Each problem needs a combination of numbers that training never showed.",
            f"Cost: the same parameters ({size}); seconds for all ten, compilation included: {seconds}. The student's "
            f"own training is in its model card.",
        ),
        table=Table(("problem", "answer", *solved["right"]), rows),
        samples=(Sample(solved["student_text"], label="as the student wrote it"),),
    )


def _marked(answer: int | None, right: int) -> str:
    return "-" if answer is None else f"{answer} ✓" if answer == right else str(answer)
