"""One model at every budget: what each resolution and patch size costs and buys."""

from packvit.evaluate.evaluators import Accuracy, Evaluator, MakeEvaluator, expected_calibration_error
from packvit.evaluate.grid import EvalConfig, Evaluation, check_budgets
from packvit.evaluate.report import draw_results, keep_old, write_results

__all__ = [
    "Accuracy",
    "EvalConfig",
    "Evaluation",
    "Evaluator",
    "MakeEvaluator",
    "check_budgets",
    "draw_results",
    "expected_calibration_error",
    "keep_old",
    "write_results",
]
