"""Claims 6 and 12: what a student takes from a teacher, and what cannot be tested here."""

from __future__ import annotations

from minimoe.claims.evidence import all_signed, answered, by_seed, clear, gain, mean, solved, text
from minimoe.claims.row import Row
from minimoe.experiments import read_record

COMMAND = "; ".join(f"minimoe experiments run {name}" for name in ("reasoning", "distillation", "knowledge-distilled"))


def distillation() -> Row:
    """Claim 6: a teacher's reasoning in a small package."""
    tokens = gain("distillation", "alone", "forward-kl", text)
    time = gain("distillation", "alone-equal-time", "forward-kl", text)
    ways = {way: by_seed("reasoning", way, solved) for way in ("sampled-right", "worked")}
    ways["direct"] = by_seed("reasoning", "direct", answered)
    steps = [a - b for a, b in zip(ways["sampled-right"], ways["direct"], strict=True)]
    against_true = [a - b for a, b in zip(ways["sampled-right"], ways["worked"], strict=True)]
    facts = gain("knowledge-distilled", "logits", "alone", lambda run: 100 * run["read"])
    unread = by_seed("knowledge-distilled", "logits", lambda run: 100 * run["unread"])
    teacher = read_record("teacher")["runs"]["teacher"]
    times = teacher["total_params"] / read_record("reasoning")["runs"]["direct-0"]["total_params"]
    return Row(
        number=6,
        id="distillation",
        claim="Distillation from larger teachers compresses reasoning into a small, efficient package.",
        means="A student with a teacher solves more problems than the same student with the same tokens and no teacher.",
        published="nothing to compute. V4 is reported to end with a stage in which one student "
        "learns from several teachers",
        text="bits per byte gained by the teacher's logits: "
        f"{all_signed(tokens)} at equal tokens, {all_signed(time)} at equal time",
        reasoning=f"problems solved: {mean(ways['direct']):.0f}% from answers alone, "
        f"{mean(ways['sampled-right']):.0f}% from the teacher's checked steps, points {all_signed(steps, 0)}; from true "
        f"steps without a teacher {mean(ways['worked']):.0f}%, points against those {all_signed(against_true, 0)}"
        + ("" if clear(against_true) else ": the seeds disagree"),
        knowledge=f"facts of the half that the student read, with logits against alone, points: {all_signed(facts, 0)}; "
        f"of the half that only the teacher read it recalls {mean(unread):.1f}%",
        other=f"the teacher is {times:.1f} times as large and solves {solved(teacher):.0f}%",
        verdict="holds when the teacher writes out its steps, and there is no other source of steps"
        if min(steps) > 0 and not (clear(against_true) and min(against_true) > 0)
        else "holds"
        if min(steps) > 0
        else "does not show here",
        not_established="That reasoning of another kind than short sums is passed on, "
        "or that logits help beyond what equal time buys. Facts that a student never reads do not come along.",
        command=COMMAND,
        numbers={
            "text": tokens,
            "text_in_time": time,
            "steps": steps,
            "against_true_steps": against_true,
            "facts": facts,
        },
    )


def rivals() -> Row:
    """Claim 12, first half: the comparison with other makers' models."""
    return Row(
        number=12,
        id="rivals",
        claim="It rivals the best models of the United States.",
        means="On the same questions, under the same rules, it is as good.",
        published="nothing to compute: benchmark scores are the makers' own",
        text="not testable here",
        reasoning="not testable here",
        knowledge="not testable here",
        other="our models have 2 to 11 million parameters: nothing follows from them for models of 10^12",
        verdict="not testable here: it needs both models, the same questions, and nobody's own scores",
        not_established="Everything: this row is here so that nobody takes the others for an answer to it.",
        command="none",
        numbers={},
    )


def black_box() -> Row:
    """Claim 12, second half: distilled from the answers of an interface."""
    answers = mean(by_seed("reasoning", "direct", answered))
    ways = ("forward-kl", "sampled-right", "sampled")
    worked, sampled, unchecked = (mean(by_seed("reasoning", way, solved)) for way in ways)
    teacher = solved(read_record("teacher")["runs"]["teacher"])
    way = {
        "text alone": (sampled - answers) / (teacher - answers),
        "unchecked": (unchecked - answers) / (teacher - answers),
        "logits too": (worked - answers) / (teacher - answers),
    }
    prose_alone = mean(by_seed("distillation", "alone", text))
    of_text = prose_alone - mean(by_seed("distillation-ways", "text-sampled", text))
    of_logits = prose_alone - mean(by_seed("distillation", "forward-kl", text))
    facts = gain("knowledge-distilled", "text", "alone", lambda run: 100 * run["read"])
    return Row(
        number=12,
        id="black-box",
        claim="It is accused of distillation from a rival's interface, from text alone.",
        means="Text is enough to copy a skill, without logits or weights. (Whether anybody did it cannot be tested here.)",
        published="nothing to compute",
        text=f"bits per byte gained by reading what the teacher wrote: {of_text:+.3f}; "
        f"by its logits on real text: {of_logits:+.3f}",
        reasoning=f"from answers alone to the teacher: {way['text alone']:.0%} of the way with the teacher's written "
        f"steps where the answers are checked, {way['unchecked']:.0%} where they are not, {way['logits too']:.0%} with true "
        "steps and its logits",
        knowledge=f"facts, read as the teacher writes them against the book itself, points: {all_signed(facts, 0)}",
        other="the teacher's weights were never given to a student",
        verdict="holds when the skill is written out in the text, as steps are, and right answers can be told from wrong ones"
        if way["text alone"] > 0.5 and of_text < of_logits
        else "does not show here",
        not_established="Who copied what from whom. It shows what text alone can carry between two small models of ours.",
        command=COMMAND,
        numbers={"of_the_way": way, "text": [of_text, of_logits], "facts": facts},
    )
