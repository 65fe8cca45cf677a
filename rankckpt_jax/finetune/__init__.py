"""Fine-tuning: the ground truth that a ranking is judged by.

SGD with momentum on all weights from the checkpoint, batch norm in training mode with
its moments taken over the whole global batch, and a new dense head that starts at
zero: the protocol of VTAB, which the paper's README names. `recipes` has the protocols
as data, `step` the compiled step, `loop` the steps of a run, `grid` a sweep's runs and
the store.
"""

from rankckpt_jax.finetune.grid import Outcome, Run, check, get
from rankckpt_jax.finetune.loop import Trained, evaluate, train
from rankckpt_jax.finetune.recipes import SWEEPS, Recipe, Sweep, schedule, single, sweep
from rankckpt_jax.finetune.step import State, initial_state

__all__ = [
    "SWEEPS",
    "Outcome",
    "Recipe",
    "Run",
    "State",
    "Sweep",
    "Trained",
    "check",
    "evaluate",
    "get",
    "initial_state",
    "schedule",
    "single",
    "sweep",
    "train",
]
