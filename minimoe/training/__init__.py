"""Training: recipe, optimiser, one step, the loop, evaluation and checkpoints."""

from minimoe.training.checkpoint import RunConfig, load_checkpoint
from minimoe.training.evaluate import Evaluation, evaluate
from minimoe.training.evaluate_tasks import TaskEvaluation, evaluate_tasks
from minimoe.training.loop import TrainResult, init_training, read_metrics, train
from minimoe.training.optim import learning_rate, make_optimizer
from minimoe.training.recipe import BALANCE_METHODS, RECIPES, Recipe
from minimoe.training.step import StepMetrics, lm_loss, router_losses, train_step, update_router_biases

__all__ = [
    "BALANCE_METHODS",
    "RECIPES",
    "Evaluation",
    "Recipe",
    "RunConfig",
    "StepMetrics",
    "TaskEvaluation",
    "TrainResult",
    "evaluate",
    "evaluate_tasks",
    "init_training",
    "learning_rate",
    "lm_loss",
    "load_checkpoint",
    "make_optimizer",
    "read_metrics",
    "router_losses",
    "train",
    "train_step",
    "update_router_biases",
]
