"""One model at every budget: cost and accuracy at each resolution and patch size.

The module itself can be called: `packvit.evaluate("runs/digits", ...)` is `evaluate` of
`packvit.evaluate.request.api`.
"""

from inspect import signature

from packvit.common.callable import make_callable
from packvit.evaluate.checks import LARGEST_PATCH, check_classes, check_memory, check_pieces, check_settings
from packvit.evaluate.config import EvalConfig
from packvit.evaluate.loss import BEST, find_run_config, loss_kind
from packvit.evaluate.measures.calibration import LossKind
from packvit.evaluate.measures.classification import measure_setting
from packvit.evaluate.page.page import write_report
from packvit.evaluate.page.pictures import Picture, ShardPictures
from packvit.evaluate.predict.prediction import Prediction
from packvit.evaluate.predict.predictor import Predictor
from packvit.evaluate.report import draw_results, measured, words
from packvit.evaluate.request.api import EvaluationResults
from packvit.evaluate.request.api import evaluate as evaluate_request
from packvit.evaluate.results import MAIN
from packvit.evaluate.run import Asked, evaluate
from packvit.evaluate.setting import Setting, parse_setting
from packvit.evaluate.sweep.chunks import cut_chunks
from packvit.evaluate.sweep.evaluators import Accuracy, AveragePrecision, Evaluator, MakeEvaluator, Scores
from packvit.evaluate.sweep.grid import Evaluation, Subject, summarise
from packvit.evaluate.sweep.sets import MakeSetEvaluator, OpenedSet, open_judged, open_mapped
from packvit.evaluate.texts.embed import TextEmbedder
from packvit.evaluate.texts.prompts import Names, ZeroShot, embed_classes, read_names
from packvit.evaluate.texts.retrieval import (
    Retrieval,
    SetCaptions,
    SideCaptions,
    make_retrieval,
    read_set_captions,
)

__all__ = [
    "BEST",
    "LARGEST_PATCH",
    "MAIN",
    "Accuracy",
    "Asked",
    "AveragePrecision",
    "EvalConfig",
    "Evaluation",
    "EvaluationResults",
    "Evaluator",
    "LossKind",
    "MakeEvaluator",
    "MakeSetEvaluator",
    "Names",
    "OpenedSet",
    "Picture",
    "Prediction",
    "Predictor",
    "Retrieval",
    "Scores",
    "SetCaptions",
    "Setting",
    "ShardPictures",
    "SideCaptions",
    "Subject",
    "TextEmbedder",
    "ZeroShot",
    "check_classes",
    "check_memory",
    "check_pieces",
    "check_settings",
    "cut_chunks",
    "draw_results",
    "embed_classes",
    "evaluate",
    "find_run_config",
    "loss_kind",
    "make_retrieval",
    "measure_setting",
    "measured",
    "open_judged",
    "open_mapped",
    "parse_setting",
    "read_names",
    "read_set_captions",
    "summarise",
    "words",
    "write_report",
]


__signature__ = signature(evaluate_request)  # for editors and notebooks

make_callable(__name__, "packvit.evaluate.request.api.evaluate")
