"""The experiments of ``minimoe lab`` that train: each is a list of runs, made anew from what is already recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

METHOD = ("fp8", "qat", "qat_from", "quantized", "start", "tasks", "form", "domains", "text", "teachers", "distill")


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
        or ``"sampled"``: as the first teacher solves them in writing. With them, the outcome is graded too.
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


def teacher(done: Mapping[str, Any]) -> list[Trial]:
    """``small`` goes on with text and as many tokens of reasoning problems: the teacher of lesson 05.

    Needs `small-hour`.
    """
    changes = {"steps": 4000, "learning_rate": 1.5e-3, "warmup_steps": 100, "eval_every": 1000}
    return [Trial("teacher", "small", changes=changes, start="small-hour/small", tasks=0.5, form="mixed")]


TEACHER = "teacher/teacher"
WAYS: dict[str, dict[str, Any]] = {
    "alone": {},
    "forward-kl": {"teachers": (TEACHER,), "distill": {"alpha": 0.9}},
    "on-policy": {"teachers": (TEACHER,), "distill": {"alpha": 0.9, "on_policy_fraction": 0.25}},
    "sampled": {"teachers": (TEACHER,), "form": "sampled"},
    "direct": {"form": "direct"},
}


def distillation(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` alone and with its teacher's help, three seeds: equal tokens, then equal time for the best way.

    Needs `teacher`. Half of all tokens are reasoning problems. ``alone`` reads them worked, with the true steps;
    ``direct`` with answers only; ``sampled`` as the teacher solves them. The step count for equal time follows from the
    speeds of the first two runs.
    """
    steps = 600
    trials = [
        Trial(f"{name}-{seed}", "nano", changes={"steps": steps, "seed": seed, "eval_every": 200}, tasks=0.5, **way)
        for seed in (0, 1, 2)
        for name, way in WAYS.items()
    ]
    if {"alone-0", "forward-kl-0"} <= set(done):
        ratio = done["forward-kl-0"]["train_seconds"] / done["alone-0"]["train_seconds"]
        longer = 10 * round(steps * ratio / 10)
        trials += [
            Trial(f"alone-equal-time-{seed}", "nano", changes={"steps": longer, "seed": seed}, tasks=0.5)
            for seed in (0, 1, 2)
        ]
    return trials


def distillation_ways(done: Mapping[str, Any]) -> list[Trial]:
    """``nano`` by other ways, one seed each: other losses, top 32 words, text alone, dense and quantized students.

    Needs `teacher`. To be read beside ``alone-0`` and ``forward-kl-0`` of `distillation`.
    """
    one: dict[str, Any] = {"changes": {"steps": 600, "seed": 0}, "tasks": 0.5}
    kl: dict[str, Any] = one | {"teachers": (TEACHER,)}
    return [
        Trial("reverse-kl", "nano", distill={"divergence": "reverse_kl"}, **kl),
        Trial("top-32", "nano", distill={"top_k": 32}, **kl),
        Trial("hinton-2", "nano", distill={"divergence": "hinton", "temperature": 2.0}, **kl),
        Trial("dense-alone", "nano", dense=True, **one),
        Trial("dense-forward-kl", "nano", dense=True, distill={"alpha": 0.9}, **kl),
        Trial("quantized", "nano", distill={"alpha": 0.9}, qat="mxfp4", quantized="mxfp4", **kl),
        Trial("text-sampled", "nano", text="sampled", form="sampled", **kl),
        Trial("jsd", "nano", distill={"divergence": "jsd"}, **kl),
    ]


SPECIALISTS: dict[str, dict[str, Any]] = {
    "stories": {"domains": ("shakespeare", "austen")},
    "bibles": {"domains": ("bible_en", "bible_es")},
    "exact": {"domains": ("python", "math")},
    "reasoning": {"tasks": 1.0},
}


def specialists(done: Mapping[str, Any]) -> list[Trial]:
    """One ``nano`` becomes four specialists, and one student learns from all of them, as in DeepSeek-V4's last stage.

    Needs `distillation`: all start from its ``alone-0``. A specialist reads only its own domains. ``several`` learns
    from all four, each judging its domains, in part on what it writes itself; ``onward`` reads the same without them.
    """
    base = "distillation/alone-0"
    changes = {"steps": 200, "learning_rate": 1e-3, "warmup_steps": 20}
    names = {domain: name for name, way in SPECIALISTS.items() for domain in way.get("domains", ("reasoning",))}
    several = tuple(f"{domain}=specialists/{name}" for domain, name in names.items())
    distill = {"alpha": 1.0, "on_policy_fraction": 0.25}
    trials = [Trial(name, "nano", changes=changes, start=base, **way) for name, way in SPECIALISTS.items()]
    for seed in (0, 1, 2):
        common: dict[str, Any] = {"changes": changes | {"seed": seed}, "start": base, "tasks": 0.5}
        trials.append(Trial(f"several-{seed}", "nano", teachers=several, distill=distill, **common))
        trials.append(Trial(f"onward-{seed}", "nano", **common))
    return trials


EXPERIMENTS: dict[str, Callable[[Mapping[str, Any]], list[Trial]]] = {
    "small-hour": small_hour,
    "sparse-vs-dense": sparse_vs_dense,
    "balance-methods": balance_methods,
    "fp8-training": fp8_training,
    "qat-mxfp4": qat_mxfp4,
    "teacher": teacher,
    "distillation": distillation,
    "distillation-ways": distillation_ways,
    "specialists": specialists,
}
