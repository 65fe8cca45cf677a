"""Fine-tuning: from a backbone and a task to the accuracy that rankings are judged by.

The protocol is VTAB's: SGD with momentum on all weights, batch norm in training mode
with moments over the whole global batch, and a new dense head that starts at zero.

    recipes.py   config -> Sweep (the protocols as data)
    sweep.py     Sweep -> SweepResult: all trials, the best one, the store
    trials.py    trials that share their steps -> TrialResult: evaluation, saving
    loop.py      the training loop, and evaluation
    step.py      the compiled training step
"""

from rankckpt_jax.finetune.loop import TrainingResult, evaluate, train, train_program
from rankckpt_jax.finetune.recipes import (
    SWEEPS,
    Recipe,
    Sweep,
    make_sweep,
    schedule,
)
from rankckpt_jax.finetune.results import SweepResult, TrialResult
from rankckpt_jax.finetune.step import (
    TRAINING_VERSION,
    State,
    initial_state,
)
from rankckpt_jax.finetune.sweep import (
    check,
    choose_splits,
    compile_programs,
    fit_batch,
    load,
    run,
    splits_used,
)

__all__ = [
    "SWEEPS",
    "Recipe",
    "State",
    "Sweep",
    "SweepResult",
    "TRAINING_VERSION",
    "TrainingResult",
    "TrialResult",
    "check",
    "choose_splits",
    "compile_programs",
    "evaluate",
    "fit_batch",
    "initial_state",
    "load",
    "make_sweep",
    "run",
    "schedule",
    "splits_used",
    "train",
    "train_program",
]
