"""Logs of a ranking for teams: TensorBoard, Weights & Biases and MLflow.

`config.track` names trackers. Each is one function that gets the summary of a ranking
and the directory of its report. To add one, decorate such a function:

    @_register("name", package="module", install="pip install MODULE")
    def name(summary: Summary, directory: epath.Path) -> None: ...

The function imports its package itself, because the package is optional. Everything is
recorded again if the same ranking is reported again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import json
import logging
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from rankckpt_jax.errors import InputError, redact
from rankckpt_jax.report import CSV_NAME, HTML_NAME, JSON_NAME, columns, terminal
from rankckpt_jax.results import verification
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import finite
from rankckpt_jax.results.summary import Summary
from rankckpt_jax.storage import files

_log = logging.getLogger(__name__)

PROJECT = "rankckpt_jax"
"""Project of Weights & Biases, and experiment of MLflow, unless the environment names
another."""

TENSORBOARD = "tensorboard"
"""Directory of TensorBoard's events, beside the report."""

_EVENTS = "events.out.tfevents.ranking"
_FACTS = ("image_size", "feature_dim", "num_parameters")
"""Fields of a row that TensorBoard shows beside its scores."""

_BATCH = 100
"""Largest number of parameters in one request to MLflow."""

_MOST_CHARACTERS = 5000
"""MLflow limits values of parameters to 6000 characters, and descriptions to 8000."""

Track = Callable[[Summary, epath.Path], None]


@dataclasses.dataclass(frozen=True)
class Tracker:
    """One tracker.

    Attributes:
      name: Its name in `config.track`.
      track: Records a ranking.
      package: The module that it imports.
      install: The command that installs the module.
    """

    name: str
    track: Track
    package: str
    install: str


_TRACKERS: dict[str, Tracker] = {}


def _register(name: str, package: str, install: str) -> Callable[[Track], Track]:
    def add(track: Track) -> Track:
        _TRACKERS[name] = Tracker(name, track, package, install)
        return track

    return add


def names() -> tuple[str, ...]:
    """Return the names of all trackers."""
    return tuple(_TRACKERS)


def get(name: str) -> Tracker:
    """Return the tracker of a name in `names()`."""
    return _TRACKERS[name]


def check(trackers: Iterable[str]) -> None:
    """Import the packages of trackers, so that a missing one is found before the work.

    Args:
      trackers: Some of `names()`.

    Raises:
      InputError: A package cannot be imported.
    """
    for tracker in map(get, trackers):
        try:
            importlib.import_module(tracker.package)
        except ImportError as error:
            raise InputError(
                f"The tracker {tracker.name!r} needs a package that is not installed",
                where="config.track",
                expected=f"the package {tracker.package}",
                found=str(error),
                fix=f"{tracker.install}, or leave {tracker.name} out of config.track",
            ) from error


def track(trackers: Iterable[str], summary: Summary, directory: epath.PathLike) -> None:
    """Record a ranking with each tracker. A tracker that fails is a logged warning.

    Args:
      trackers: Some of `names()`.
      summary: The summary of the ranking.
      directory: The directory to which `report.write` wrote the ranking.
    """
    directory = epath.Path(directory)
    for name in trackers:
        _log.info("%s: recording the ranking ...", name)
        try:
            get(name).track(summary, directory)
        # A server that cannot be reached raises errors of any type.
        except Exception as error:
            _log.warning(
                "%s: the ranking was not recorded: %s. Its files in %s are complete. "
                "To record it, run the same command again with --config.stages=report",
                name,
                redact(f"{type(error).__name__}: {files.reason(error)}"),
                directory,
            )
            _log.debug("%s: traceback", name, exc_info=error)


@_register("tensorboard", "tensorboardX", install="pip install tensorboardX")
def _tensorboard(summary: Summary, directory: epath.Path) -> None:
    """Write events: one run for each checkpoint, and one for the ranking itself.

    The tab HParams shows them as a table that can be sorted by each measure. The
    directory is replaced, so that no checkpoint of an earlier pool stays.
    """
    # Imported here: an optional use; see the module's docstring.
    from tensorboardX import summary as summaries

    ranking = summary.ranking
    texts = {
        "ranking": _as_code(terminal.to_text(summary, width=100)),
        "config": _as_code(json.dumps(_config(ranking), indent=2, default=str)),
        "page": f"`{HTML_NAME}` lies in the directory above these events.",
    }
    place = directory / TENSORBOARD
    if place.exists():
        place.rmtree()
    scores = _scores(ranking)
    facts = {
        row.checkpoint: {
            "checkpoint": printable(row.checkpoint),
            "architecture": printable(row.architecture),
            "group": printable(row.group),
            **{n: v for n in _FACTS if (v := getattr(row, n)) is not None},
        }
        for row in ranking.rows
        if row.checkpoint in scores
    }
    # TensorBoard reads the columns of the table from one of the runs.
    all_facts = {name: value for f in facts.values() for name, value in f.items()}
    all_scores = {name: value for _, v in scores.values() for name, value in v.items()}
    columns_of_table, _, _ = summaries.hparams(all_facts, all_scores)
    _write_events(
        place,
        [
            columns_of_table,
            *(summaries.text(name, text) for name, text in texts.items()),
            *(summaries.scalar(n, v) for n, v in _agreement(ranking).items()),
        ],
    )
    for checkpoint, (run, values) in scores.items():
        _, start, end = summaries.hparams(facts[checkpoint], values)
        points = [summaries.scalar(name, value) for name, value in values.items()]
        _write_events(place / run, [columns_of_table, start, *points, end])


def _write_events(directory: epath.Path, events: Iterable[Any]) -> None:
    """Write summaries of step 0 as the only events of a directory."""
    # Imported here: an optional use; see the module's docstring.
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    with tempfile.TemporaryDirectory() as temporary:
        # A local file first, because the directory may be in a bucket.
        writer = event_file_writer.EventsWriter(str(pathlib.Path(temporary, "x")))
        for event in events:
            writer.write_event(event_pb2.Event(wall_time=time.time(), summary=event))
        writer.close()
        (file,) = pathlib.Path(temporary).iterdir()
        directory.mkdir(parents=True, exist_ok=True)
        files.write_bytes_atomically(directory / _EVENTS, file.read_bytes())


@_register("wandb", "wandb", install="pip install 'rankckpt_jax[wandb]'")
def _wandb(summary: Summary, directory: epath.Path) -> None:
    """Record a run with Weights & Biases, as its environment variables select.

    The command line and the git remote may contain passwords, and are not recorded.
    """
    # Imported here: an optional package; see the module's docstring.
    import wandb

    ranking = summary.ranking
    settings = wandb.Settings(
        console="off",
        disable_git=True,
        # A run that the caller has open in a notebook stays as it is.
        reinit="create_new",
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    table = columns.columns(ranking)
    with (
        _local_files(directory) as local,
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", printable(ranking.task)),
            job_type="ranking",
            notes="\n".join(summary.sentences),
            config=json.loads(json.dumps(_config(ranking), default=str)),
            settings=settings,
        ) as run,
    ):
        html = wandb.Html((local / HTML_NAME).read_text(), inject=False)
        rows = [[_cell(c.value(row)) for c in table] for row in ranking.rows]
        names: list[str | int] = [printable(c.name) for c in table]
        run.log(
            {
                "ranking": wandb.Table(
                    columns=names, data=rows, allow_mixed_types=True
                ),
                "report": html,
            }
        )
        run.summary.update(_metrics(ranking))
        artifact = wandb.Artifact(f"ranking-{_key(ranking.task)}"[:128], "ranking")
        artifact.add_dir(str(local))
        run.log_artifact(artifact)


@_register("mlflow", "mlflow", install="pip install 'rankckpt_jax[mlflow]'")
def _mlflow(summary: Summary, directory: epath.Path) -> None:
    """Record a run with MLflow, as its environment variables select."""
    # Imported here: an optional package; see the module's docstring.
    import mlflow

    ranking = summary.ranking
    if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
        mlflow.set_experiment(PROJECT)
    note = "\n\n".join(summary.sentences)[:_MOST_CHARACTERS]
    params = {
        _key(name): str(value)[:_MOST_CHARACTERS]
        for name, value in verification.flatten(_config(ranking))
    }
    with (
        _local_files(directory) as local,
        # Nested in a run that the caller has open in a notebook.
        mlflow.start_run(
            run_name=printable(ranking.task), nested=True, description=note
        ),
    ):
        for batch in _batches(params):
            mlflow.log_params(batch)
        for batch in _batches(_metrics(ranking)):
            mlflow.log_metrics(batch)
        mlflow.log_artifacts(str(local))


@contextlib.contextmanager
def _local_files(directory: epath.Path) -> Iterator[pathlib.Path]:
    """Yield a local directory with copies of the report's files."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in (CSV_NAME, JSON_NAME, HTML_NAME):
            pathlib.Path(temporary, name).write_bytes((directory / name).read_bytes())
        yield pathlib.Path(temporary)


def _config(ranking: Ranking) -> Mapping[str, Any]:
    """Return the config of the run, which has no secrets."""
    return ranking.provenance.get("config") or {}


def _scores(ranking: Ranking) -> dict[str, tuple[str, dict[str, float]]]:
    """Return by checkpoint a distinct name for files, and its scores and accuracy."""
    result: dict[str, tuple[str, dict[str, float]]] = {}
    used: set[str] = set()
    for row in ranking.rows:
        values = {_key(name): row.score(name) for name in ranking.measures}
        values[ranking.metric] = row.finite_accuracy()
        known = {name: value for name, value in values.items() if value is not None}
        name = _key(row.checkpoint)
        if name in used:
            name = f"{name}-{files.digest(row.checkpoint)[:8]}"
        used.add(name)
        if known and not row.failure:
            result[row.checkpoint] = name, known
    return result


def _agreement(ranking: Ranking) -> dict[str, float]:
    """Return the metrics of each measure, where they are known."""
    return {
        f"{metric.replace('@', '_at_')}/{_key(measure)}": value
        for measure, scores in ranking.evaluation.items()
        for metric, given in scores.items()
        if (value := finite(given)) is not None
    }


def _metrics(ranking: Ranking) -> dict[str, float]:
    """Return all scores and accuracies as MEASURE/CHECKPOINT, and the agreement."""
    scores = {
        f"{measure}/{name}": value
        for name, values in _scores(ranking).values()
        for measure, value in values.items()
    }
    return {**scores, **_agreement(ranking)}


def _key(name: str) -> str:
    """Return a name that is allowed in files and in keys of all trackers."""
    return re.sub(r"[^\w.-]", "_", files.directory_name(name), flags=re.ASCII)


def _cell(value: columns.Value) -> columns.Value:
    """Return a value of the table as JSON has it."""
    return printable(value) if isinstance(value, str) else finite(value)


def _batches(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    items = iter(values.items())
    while batch := dict(itertools.islice(items, _BATCH)):
        yield batch


def _as_code(text: str) -> str:
    """Return a text as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
