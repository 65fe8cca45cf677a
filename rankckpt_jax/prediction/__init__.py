"""Predicted accuracies of a pool of checkpoints, from all that is known before.

`fit` takes tables of earlier tasks, and `predict` the checkpoints of a new one.
docs/predicting.md explains the model and states its evidence.
"""

from rankckpt_jax.prediction.candidates import Candidate, Early, candidates
from rankckpt_jax.prediction.outcome import CheckpointPrediction, Prediction
from rankckpt_jax.prediction.predictor import Predictor, fit, predict
from rankckpt_jax.prediction.published import published_relations
from rankckpt_jax.prediction.relations import Relations

__all__ = [
    "Candidate",
    "CheckpointPrediction",
    "Early",
    "Prediction",
    "Predictor",
    "Relations",
    "candidates",
    "fit",
    "predict",
    "published_relations",
]
