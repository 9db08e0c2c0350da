"""A gate that decides if a student may replace its teacher. It has three verdicts and fails closed.

GO: every blocking metric of the policy passes. NO-GO: one fails. INCONCLUSIVE: the evidence is too weak.
"""

from skill_kd.evaluate.answer import evaluate
from skill_kd.evaluate.evaluation_result import EvaluationResult
from skill_kd.evaluate.from_generations import Files, evaluate_generations
from skill_kd.evaluate.measurements import ModelMeasurements
from skill_kd.evaluate.policy import PRESETS, GatePolicy, make_policy
from skill_kd.evaluate.request import Request

__all__ = [
    "PRESETS",
    "EvaluationResult",
    "Files",
    "GatePolicy",
    "ModelMeasurements",
    "Request",
    "evaluate",
    "evaluate_generations",
    "make_policy",
]
