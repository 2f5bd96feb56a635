"""One model at every budget: what each resolution and patch size costs and buys."""

from packvit.evaluate.evaluators import Accuracy, Evaluator, MakeEvaluator, expected_calibration_error
from packvit.evaluate.grid import LARGEST_PATCH, EvalConfig, Evaluation, check_budgets, check_memory
from packvit.evaluate.report import draw_results, write_results

__all__ = [
    "LARGEST_PATCH",
    "Accuracy",
    "EvalConfig",
    "Evaluation",
    "Evaluator",
    "MakeEvaluator",
    "check_budgets",
    "check_memory",
    "draw_results",
    "expected_calibration_error",
    "write_results",
]
