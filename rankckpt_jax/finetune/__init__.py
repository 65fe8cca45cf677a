"""Fine-tuning: from a backbone and a task to the accuracy that rankings are judged by.

The protocol is VTAB's: SGD with momentum on all weights, batch norm in training mode
with moments over the whole global batch, and a new dense head that starts at zero.

    recipes.py   config -> Sweep (the protocols as data)
    sweep.py     Sweep -> SweepResult: all trials, the best one, the store
    early_choice.py  the same, if learning rates are dropped before the last step
    trials.py    trials that share their steps -> TrialResult: evaluation, saving
    loop.py      the training loop, and evaluation
    step.py      the compiled training step

    model.py     a trained checkpoint -> Model: weights, classes and preprocessing
    predict.py   Model x images -> Predictions
    serving.py   Model -> a program that needs only JAX
"""

from rankckpt_jax.finetune.early_choice import load_start, start
from rankckpt_jax.finetune.loop import TrainingResult, evaluate, train, train_program
from rankckpt_jax.finetune.model import Model, load_model, make_model, save_model
from rankckpt_jax.finetune.prepare import Prepared, fit_batch, prepare
from rankckpt_jax.finetune.recipes import (
    SWEEPS,
    Recipe,
    Sweep,
    make_sweep,
    schedule,
)
from rankckpt_jax.finetune.results import Start, SweepResult, TrialResult
from rankckpt_jax.finetune.step import (
    TRAINING_VERSION,
    State,
    initial_state,
)
from rankckpt_jax.finetune.sweep import (
    check,
    chosen_key,
    chosen_split,
    compile_programs,
    load,
    load_weights,
    result_key,
    run,
    save,
)
from rankckpt_jax.finetune.sweep_splits import choose_splits, splits_used
from rankckpt_jax.finetune.trials import recipe_key as recipe_fields

__all__ = [
    "SWEEPS",
    "Model",
    "Prepared",
    "Recipe",
    "Start",
    "State",
    "Sweep",
    "SweepResult",
    "TRAINING_VERSION",
    "TrainingResult",
    "TrialResult",
    "check",
    "choose_splits",
    "chosen_key",
    "chosen_split",
    "compile_programs",
    "evaluate",
    "fit_batch",
    "initial_state",
    "load",
    "load_model",
    "load_start",
    "load_weights",
    "make_model",
    "make_sweep",
    "prepare",
    "recipe_fields",
    "result_key",
    "run",
    "save",
    "save_model",
    "schedule",
    "splits_used",
    "start",
    "train",
    "train_program",
]
