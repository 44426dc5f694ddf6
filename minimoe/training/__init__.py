"""Training: recipe, optimiser, one step, the loop, evaluation and checkpoints."""

from minimoe.training.checkpoint import load_checkpoint
from minimoe.training.evaluate import Evaluation, evaluate
from minimoe.training.evaluate_tasks import TaskEvaluation, evaluate_tasks
from minimoe.training.loop import TrainResult, init_training, read_metrics, train
from minimoe.training.method import Combined, Method, StepChanges
from minimoe.training.optim import learning_rate, make_optimizer, optimizer_for
from minimoe.training.recall import FactEvaluation, RecallFacts, evaluate_facts, fact_model, fact_run
from minimoe.training.recipe import BALANCE_METHODS, RECIPES, Recipe
from minimoe.training.run_folder import RunConfig
from minimoe.training.step import StepMetrics, lm_loss, router_losses, train_step, update_router_biases

__all__ = [
    "BALANCE_METHODS",
    "RECIPES",
    "Combined",
    "Evaluation",
    "FactEvaluation",
    "Method",
    "RecallFacts",
    "Recipe",
    "RunConfig",
    "StepChanges",
    "StepMetrics",
    "TaskEvaluation",
    "TrainResult",
    "evaluate",
    "evaluate_facts",
    "evaluate_tasks",
    "fact_model",
    "fact_run",
    "init_training",
    "learning_rate",
    "lm_loss",
    "load_checkpoint",
    "make_optimizer",
    "optimizer_for",
    "read_metrics",
    "router_losses",
    "train",
    "train_step",
    "update_router_biases",
]
