"""The experiments of ``minimoe lab`` that train: each is a list of runs, made anew from what is already recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from minimoe.experiments.records import training_speed

METHOD = (
    "fp8",
    "qat",
    "qat_from",
    "quantized",
    "start",
    "tasks",
    "form",
    "pool",
    "domains",
    "text",
    "teachers",
    "distill",
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run of an experiment.

    Attributes:
      changes: to its recipe. experts: to its `minimoe.MoEConfig`.
      fp8: train with 8-bit products (`minimoe.quant.fp8_training`), and score so too.
      qat: quantization recipe whose rounded weights the forward pass uses after step ``qat_from``.
      quantized: quantization recipe applied after training; the outcome then is scored as well.
      start: finished run of another experiment, as ``experiment/run``, whose weights this one continues from.
      tasks: share of the training tokens from reasoning problems, 0..1, in the ``form`` of `minimoe.data.task_documents`
        or as the first teacher solves them in writing: ``"sampled"``, ``"sampled-right"`` only those that it solves
        right, ``"worked-right"`` the same ones with the true steps. With them, the outcome is graded too.
      pool: how many problems, the same for all students; at 0 an endless row of the run's own seed.
      domains: of the corpus, to train on; all if none is named. text: ``"sampled"``: as the first teacher goes on below
        short excerpts, instead of the corpus itself.
      teachers: finished runs to learn from, as ``start``: one for all, or ``domain=experiment/run`` for some domains.
      distill: how to, as arguments of `minimoe.distill.DistillRecipe`; empty if the teacher's text is all that the
        student gets.
    """

    name: str
    preset: str
    dense: bool = False
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    experts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fp8: bool = False
    qat: str | None = None
    qat_from: int = 0
    quantized: str | None = None
    start: str | None = None
    tasks: float = 0.0
    form: str = "worked"
    pool: int = 0
    domains: tuple[str, ...] = ()
    text: str = "corpus"
    teachers: tuple[str, ...] = ()
    distill: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def method(self) -> dict[str, Any]:
        """What a run's config does not say, for the record."""
        values = {name: getattr(self, name) for name in METHOD}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def small_hour(done: Mapping[str, Any]) -> list[Trial]:
    """``small`` for about an hour on two cores: the curve, and bits per byte on the whole validation text."""
    return [Trial("small", "small")]


def sparse_vs_dense(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` against the dense model of equal active FLOPs, three seeds: at equal tokens, then at equal time.

    The step count for equal time follows from the speeds measured in the first two runs.
    """
    steps = 600
    trials = []
    for seed in (0, 1, 2):
        trials.append(Trial(f"sparse-{seed}", "nano", changes={"steps": steps, "seed": seed}))
        trials.append(Trial(f"dense-{seed}", "nano", dense=True, changes={"steps": steps, "seed": seed}))
    if {"sparse-0", "dense-0"} <= set(done):
        ratio = done["sparse-0"]["train_seconds"] / done["dense-0"]["train_seconds"]
        longer = 10 * round(steps * ratio / 10)
        for seed in (0, 1, 2):
            changes = {"steps": longer, "seed": seed}
            trials.append(Trial(f"dense-equal-time-{seed}", "nano", dense=True, changes=changes))
    return trials


def balance_methods(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` under five ways of balancing, equal steps, three seeds: quality, balance, specialisation."""
    from minimoe.training import BALANCE_METHODS

    return [
        Trial(f"{method}-{seed}", "nano", changes={"steps": 300, "seed": seed} | changes)
        for seed in (0, 1, 2)
        for method, changes in BALANCE_METHODS.items()
    ]


def fp8_training(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` with float32 and with emulated 8-bit products, the same three seeds: how far the losses part."""
    return [
        Trial(f"{name}-{seed}", "nano", changes={"steps": 300, "seed": seed}, fp8=name == "fp8")
        for seed in (0, 1, 2)
        for name in ("float32", "fp8")
    ]


def qat_mxfp4(done: Mapping[str, Any]) -> list[Trial]:
    """``small`` with experts in MXFP4: 200 more steps of training with and without the rounding, equal but for that.

    Needs `small-hour`, whose weights it starts from, as DeepSeek-V4 does this after its main training. ``full`` scores
    the float32 weights, ``quantized`` the rounded ones: for ``plain`` runs that is post-training quantization.
    """
    changes = {"steps": 200, "learning_rate": 3e-4, "warmup_steps": 20}
    return [
        Trial(
            f"{name}-{seed}",
            "small",
            changes=changes | {"seed": seed},
            start="small-hour/small",
            quantized="mxfp4",
            qat="mxfp4" if name == "qat" else None,
        )
        for seed in (0, 1, 2)
        for name in ("plain", "qat")
    ]


def nano(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` for six million tokens, ten times the tour's: what the package ships."""
    return [Trial("nano", "nano", changes={"steps": 3000, "eval_every": 500})]


def teacher(done: Mapping[str, Any]) -> list[Trial]:
    """``small`` goes on with text and as many tokens of reasoning problems: the teacher of lesson 05.

    Needs `small-hour`.
    """
    changes = {"steps": 4000, "learning_rate": 1.5e-3, "warmup_steps": 100, "eval_every": 1000}
    return [Trial("teacher", "small", changes=changes, start="small-hour/small", tasks=0.5, form="mixed")]


TEACHER = "teacher/teacher"
STUDENT: dict[str, Any] = {"preset": "nano", "tasks": 0.5, "pool": 9216}  # about as many as 600 steps read once
STUDENT_STEPS = 600
WAYS: dict[str, dict[str, Any]] = {
    "alone": {},
    "forward-kl": {"teachers": (TEACHER,), "distill": {"alpha": 0.9}, "quantized": "mxfp4"},
}


def distillation(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` alone and with its teacher's help, three seeds: equal tokens, then equal time.

    Needs `teacher`. Half of all tokens are reasoning problems from one pool, worked, with the true steps.
    ``alone-equal-time`` takes as long as ``forward-kl``, by the median speeds of three seeds.
    """
    trials = [
        Trial(f"{name}-{seed}", **STUDENT | way, changes={"steps": STUDENT_STEPS, "seed": seed, "eval_every": 100})
        for seed in (0, 1, 2)
        for name, way in WAYS.items()
    ]
    speeds = {
        name: [training_speed(done[f"{name}-{seed}"]) for seed in (0, 1, 2) if f"{name}-{seed}" in done]
        for name in ("alone", "forward-kl")
    }
    if all(len(found) == 3 for found in speeds.values()):
        longer = 10 * round(STUDENT_STEPS * sum(speeds["alone"]) / sum(speeds["forward-kl"]) / 10)
        trials += [
            Trial(f"alone-equal-time-{seed}", **STUDENT, changes={"steps": longer, "seed": seed}) for seed in (0, 1, 2)
        ]
    return trials


REASONER: dict[str, Any] = {"preset": "nano", "start": "nano/nano", "tasks": 0.9, "pool": 18432}
REASONING_STEPS = 1600
REASONING_WAYS: dict[str, dict[str, Any]] = {
    "direct": {"form": "direct"},
    "sampled-right": {"teachers": (TEACHER,), "form": "sampled-right"},
    "worked": {},
    "worked-right": {"teachers": (TEACHER,), "form": "worked-right"},
    "forward-kl": {"teachers": (TEACHER,), "distill": {"alpha": 0.9}},
}
POLISH: dict[str, dict[str, Any]] = {
    "onward": {},
    "offline": {"distill": {"alpha": 0.9}},
    "on-policy": {"distill": {"alpha": 0.9, "on_policy_fraction": 1.0}},
}


def reasoning(done: Mapping[str, Any]) -> list[Trial]:
    """A trained ``nano`` learns to reason, three seeds: from answers, its teacher's steps, true steps, and its logits.

    Needs `nano` and `teacher`. Nine tenths of all tokens are problems from one pool: ``direct`` reads the answers only,
    ``sampled-right`` the steps of the teacher where they led to the right answer (``sampled`` all of them), ``worked``
    the true ones of all problems and ``worked-right`` of those that the teacher solved, ``forward-kl`` as ``worked``
    and the teacher's opinion of each word. Then 150 steps more from ``sampled-right``: ``onward`` on the same text,
    ``offline`` with the teacher's opinion of it, ``on-policy`` with its opinion of what the student writes.
    ``direct-equal-time`` takes as long as ``sampled-right`` and the writing of its text together.
    """
    changes: dict[str, Any] = {"steps": REASONING_STEPS, "learning_rate": 3e-3, "warmup_steps": 50}
    trials = [
        Trial(f"{name}-{seed}", **REASONER | way, changes=changes | {"seed": seed})
        for seed in (0, 1, 2)
        for name, way in REASONING_WAYS.items()
    ]
    unchecked: dict[str, Any] = REASONER | {"teachers": (TEACHER,), "form": "sampled"}
    trials += [Trial(f"sampled-{seed}", **unchecked, changes=changes | {"seed": seed}) for seed in (0, 1, 2)]
    changes = {"steps": 150, "learning_rate": 5e-4, "warmup_steps": 15}
    for seed in (0, 1, 2):
        common = REASONER | {"start": f"reasoning/sampled-right-{seed}", "teachers": (TEACHER,)}
        common |= {"form": "sampled-right", "changes": changes | {"seed": 10 + seed}}
        trials += [Trial(f"{name}-{seed}", **common | way) for name, way in POLISH.items()]
    if {"direct-0", "sampled-right-0"} <= set(done):
        direct, sampled = done["direct-0"], done["sampled-right-0"]
        spent = sampled["sampled_seconds"] + sampled["tokens"] / training_speed(sampled)
        longer = 10 * round(REASONING_STEPS * spent * training_speed(direct) / direct["tokens"] / 10)
        changes = {"steps": longer, "learning_rate": 3e-3, "warmup_steps": 50}
        trials.append(Trial("direct-equal-time-0", **REASONER | REASONING_WAYS["direct"], changes=changes))
    return trials


def distillation_ways(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` by other ways, three seeds: other losses, top 32 words, text alone, dense and quantized students.

    Needs `teacher`. To be read beside `distillation`, seed by seed: ``quantized`` beside the rounded weights of
    ``forward-kl`` there; ``dense-forward-kl`` beside ``dense-alone``, and the two sampled ones beside each other.
    """
    learns: dict[str, Any] = {"teachers": (TEACHER,)}
    reads: dict[str, Any] = learns | {"text": "sampled", "form": "sampled"}
    ways: dict[str, dict[str, Any]] = {
        "reverse-kl": learns | {"distill": {"divergence": "reverse_kl"}},
        "text-sampled": reads,
        "text-sampled-logits": reads | {"distill": {"alpha": 1.0}},
        "top-32": learns | {"distill": {"top_k": 32}},
        "dense-alone": {"dense": True},
        "dense-forward-kl": learns | {"dense": True, "distill": {"alpha": 0.9}},
        "quantized": learns | {"distill": {"alpha": 0.9}, "qat": "mxfp4", "quantized": "mxfp4"},
        "hinton-2": learns | {"distill": {"divergence": "hinton", "temperature": 2.0}},
        "jsd": learns | {"distill": {"divergence": "jsd"}},
    }
    return [
        Trial(f"{name}-{seed}", **STUDENT | way, changes={"steps": STUDENT_STEPS, "seed": seed})
        for seed in (0, 1, 2)
        for name, way in ways.items()
    ]


SPECIALISTS: dict[str, tuple[str, ...]] = {
    "stories": ("shakespeare", "austen"),
    "bibles": ("bible_en", "bible_es"),
    "exact": ("python", "math"),
}


def specialists(done: Mapping[str, Any]) -> list[Trial]:
    """A trained ``nano`` becomes four specialists, and one student learns from all; after DeepSeek-V4's last stage.

    Needs `nano` and `reasoning`, whose ``worked-0`` is the fourth. The others read only their own domains. ``several``
    learns from all four, each judging its domains, in a quarter of the steps on what it writes itself (V4: in all);
    ``onward`` takes the same steps without them, ``onward-longer`` as many as they and it took together. All begin from
    the same ``nano``. ``several-from-reasoning`` and ``onward-from-reasoning`` begin from a specialist of problems, the
    best of three seeds, which is their teacher of problems too.
    """
    own, shared = 300, 600
    base: dict[str, Any] = {"preset": "nano", "start": "nano/nano"}
    slow: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 20}
    fast: dict[str, Any] = {"learning_rate": 3e-3, "warmup_steps": 20}
    onward: dict[str, Any] = base | {"tasks": 0.5, "pool": REASONER["pool"]}
    trials = [
        Trial(name, **base, domains=domains, changes=slow | {"steps": own, "seed": 1})
        for name, domains in SPECIALISTS.items()
    ]
    for seed in (1, 2, 3):
        changes = fast | {"steps": shared, "seed": seed}
        trials.append(Trial(f"several-{seed}", **onward | _several("reasoning/worked-0"), changes=changes))
        trials.append(Trial(f"onward-{seed}", **onward, changes=changes))
    together = shared + own * len(SPECIALISTS) + REASONING_STEPS
    trials.append(Trial("onward-longer-1", **onward, changes=fast | {"steps": together, "seed": 1}))
    onward |= {"start": "reasoning/worked-1"}
    for seed in (1, 2, 3):
        changes = slow | {"steps": 400, "seed": seed}
        trials.append(Trial(f"several-from-reasoning-{seed}", **onward | _several(onward["start"]), changes=changes))
        trials.append(Trial(f"onward-from-reasoning-{seed}", **onward, changes=changes))
    return trials


def _several(reasoning: str) -> dict[str, Any]:
    """The four teachers, and their share: a third of three quarters of the steps, and the quarter on own answers, are
    half of all on problems, as without them.
    """
    names = {domain: f"specialists/{name}" for name, domains in SPECIALISTS.items() for domain in domains}
    names["reasoning"] = reasoning
    teachers = tuple(f"{domain}={name}" for domain, name in names.items())
    return {"tasks": 1 / 3, "teachers": teachers, "distill": {"alpha": 1.0, "on_policy_fraction": 0.25}}


EXPERIMENTS: dict[str, Callable[[Mapping[str, Any]], list[Trial]]] = {
    "small-hour": small_hour,
    "sparse-vs-dense": sparse_vs_dense,
    "balance-methods": balance_methods,
    "fp8-training": fp8_training,
    "qat-mxfp4": qat_mxfp4,
    "nano": nano,
    "teacher": teacher,
    "distillation": distillation,
    "distillation-ways": distillation_ways,
    "reasoning": reasoning,
    "specialists": specialists,
}
