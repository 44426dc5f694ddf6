"""Distillation: a small model learns from a larger one.

In reading order: `losses` (how far the student is from the teacher), `cached` (the teacher's answers on disk), `recipe`
(how much the teacher counts), `objective` (what a step lowers), `on_policy` (the student writes, the teacher judges),
`offline` (training with one teacher or several).
"""

from minimoe.distill.cached import (
    CacheHeader,
    TeacherCache,
    TopK,
    load_cache,
    top_k_targets,
    write_cache,
)
from minimoe.distill.losses import (
    DIVERGENCES,
    forward_kl,
    generalized_jsd,
    hidden_state_matching,
    hinton_kd,
    masked_mean,
    reverse_kl,
    topk_kl,
)
from minimoe.distill.objective import DistillObjective, Targets
from minimoe.distill.offline import Distillation, cache_teacher, check_teacher, distill, sample_documents
from minimoe.distill.on_policy import Rollouts, task_prompts
from minimoe.distill.recipe import DistillRecipe
from minimoe.model import model_fingerprint

__all__ = [
    "DIVERGENCES",
    "CacheHeader",
    "DistillObjective",
    "DistillRecipe",
    "Distillation",
    "Rollouts",
    "Targets",
    "TeacherCache",
    "TopK",
    "cache_teacher",
    "check_teacher",
    "distill",
    "forward_kl",
    "generalized_jsd",
    "hidden_state_matching",
    "hinton_kd",
    "load_cache",
    "masked_mean",
    "model_fingerprint",
    "reverse_kl",
    "sample_documents",
    "task_prompts",
    "top_k_targets",
    "topk_kl",
    "write_cache",
]
