"""The Python interface: a ranking in three lines.

    from rankckpt_jax import rank
    ranking = rank(data="path/to/images", checkpoints="path/to/checkpoints")
    print(ranking)

`rank_features` does the same with features that were extracted elsewhere. `predict`
applies the model that fine-tuning kept.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankckpt_jax import short_form
from rankckpt_jax.benchmark import published
from rankckpt_jax.configs import default
from rankckpt_jax.data import metrics, targets
from rankckpt_jax.devices import compilation
from rankckpt_jax.devices import progress as progress_lib
from rankckpt_jax.errors import InputError, unknown_name
from rankckpt_jax.features.feature_set import from_arrays, to_accuracy
from rankckpt_jax.results import comparison, predicted
from rankckpt_jax.results import ranking as ranking_lib
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import scoring

if TYPE_CHECKING:
    from rankckpt_jax.finetune.model import Model
    from rankckpt_jax.finetune.predict import Predictions

_log = logging.getLogger(__name__)

Features = tuple[Any, Any] | tuple[Any, Any, Any] | Mapping[str, Any]
"""(features, labels), (features, labels, logits), or a mapping with these names."""


def rank(
    data: str | os.PathLike[str],
    checkpoints: Any,
    *,
    measures: str | Sequence[str] = "nleep,leep,h_score",
    finetune: bool | int = False,
    image_size: int = 0,
    workdir: str | os.PathLike[str] = "runs",
    seed: int = 0,
    fields: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Ranking:
    """Rank checkpoints by how well they should transfer to a task's images.

    Features, scores and accuracies are cached in `workdir`, which also receives
    `ranking.csv`, `ranking.json` and `report.html`.

    Example:
        ranking = rank("photos", "checkpoints")
        ranking.best.checkpoint, ranking.best.scores
        ranking.to_html("ranking.html")
        ranking.to_pandas().sort_values("accuracy")

    Args:
      data: A folder with `train/CLASS/*.jpg`, or a TFDS data set with its version
        ("caltech101:3.*.*").
      checkpoints: Directories, globs, files or handles; see `config.checkpoints` in
        configs/default.py. Also models in memory: a `Backbone`, a `keras.Model`, or
        what `checkpoints.from_flax`, `from_keras` or `from_torch` returns. One of
        these, or a sequence of them. `Backbone`s keep their image size.
      measures: Names of measures, or "all". The first one orders the ranking.
      finetune: Whether to fine-tune every checkpoint too, which shows how good the
        ranking is and takes far longer. A number fine-tunes only so many of the
        best-ranked checkpoints.
      image_size: Side of the images in pixels; 0 for each checkpoint's own.
      workdir: Directory or bucket of all results.
      seed: Seed of random starts and of the order of images.
      fields: Other fields of configs/default.py by dotted name:
        `{"finetune.num_steps": 100}`.
      progress: Whether to show log lines and progress bars, on standard error or below
        the cell of a notebook. False is quiet except for warnings. By default they are
        shown unless the application has set up logging, which then decides.

    Returns:
      The ranking; `print` shows it as a table. The row of a checkpoint that failed
      names the reason.

    Raises:
      InputError: The images, the whole pool or an option cannot be used.
    """
    # Imports inside the function, because TensorFlow and the networks take seconds.
    from rankckpt_jax.checkpoints import in_memory
    from rankckpt_jax.configs import folder
    from rankckpt_jax.run.run import run

    items = checkpoints if isinstance(checkpoints, list | tuple) else [checkpoints]
    paths = [item for item in items if isinstance(item, str | os.PathLike)]
    models = [
        in_memory.read(item, f"checkpoints[{i}]")
        for i, item in enumerate(items)
        if not isinstance(item, str | os.PathLike)
    ]
    config = folder.get_config()
    given = short_form.to_fields(
        data,
        paths,
        measures=measures,
        image_size=image_size,
        workdir=workdir,
        seed=seed,
        finetune=finetune,
        stages=config.stages,
    )
    try:
        config.update_from_flattened_dict({**given, **(fields or {})})
    except (KeyError, TypeError) as error:
        raise InputError(
            "A field of the configuration cannot be set",
            where="fields",
            expected="names and types of configs/default.py",
            found=str(error).strip("'\"").replace("\\n", " "),
            fix="configs/default.py documents every field",
        ) from error
    compilation.limit_tpu_fusions()
    with progress_lib.shown(progress):
        return run(config, models)


def rank_features(
    features: Mapping[str, Features],
    *,
    measures: str | Sequence[str] = "nleep,h_score",
    accuracies: Mapping[str, float] | None = None,
    task: str = "features",
    target: str = targets.CLASSES,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    num_bootstrap: int = 0,
    seed: int = 0,
    progress: bool | None = None,
) -> Ranking:
    """Rank checkpoints by features that were extracted elsewhere, in any framework.

    Example:
      >>> import numpy as np
      >>> rng = np.random.default_rng(0)
      >>> labels = np.arange(90) % 3
      >>> means = rng.normal(size=(3, 4))
      >>> def net(separation):
      ...     return separation * means[labels] + rng.normal(size=(90, 4)), labels
      >>> pool = {"weak": net(0.1), "strong": net(3.0)}
      >>> ranking = rank_features(pool, measures="lda", task="shapes")
      >>> ranking.best.checkpoint
      'strong'
      >>> ranking.ranks
      (1, 2)

    Args:
      features: By checkpoint, (features [N, D], labels [N]) or (features, labels,
        logits [N, V]) or a mapping with these names: NumPy or JAX arrays, PyTorch
        tensors, or sparse matrices. Labels are integers, whole floats or strings, [N]
        or [N, 1]; see `target` for other kinds. All checkpoints should see the same
        images.
      measures: Names of measures, or "all". The first one orders the ranking.
      accuracies: Known accuracies after fine-tuning by checkpoint, in [0, 1]; for
        several labels mean average precisions, for numbers R2, which is at most 1.
      task: Name of the task.
      target: The kind of the labels: "classes"; "multi_label", several labels per
        image: booleans [N, L]; or "regression", one number: floats [N]. Measures that
        are not defined for it are left out, and a log line says so.
      options: Options by measure: `{"nleep": {"energy": 0.9}}`. The others have the
        defaults of configs/default.py, as in `rank`.
      num_bootstrap: Random halves of the images that are scored too, for each score's
        standard deviation; 0 for none.
      seed: Seed of random starts.
      progress: Whether to show what is computed; as for `rank`.

    Returns:
      The ranking. Nothing is written; see `Ranking.to_csv` and `Ranking.to_html`. The
      row of unusable features names the reason.

    Raises:
      InputError: A measure or an option is unknown.
    """
    names = scoring.parse_measures(measures)
    defaults = default.get_config().measure_options.to_dict()
    given_options = options or {}
    options = {
        name: {**defaults.get(name, {}), **given_options.get(name, {})}
        for name in dict.fromkeys((*names, *given_options))
        if name in defaults or name in given_options
    }
    settings = scoring.Settings(names, options, seed, num_bootstrap)
    scoring.check_settings(settings)
    if target not in targets.TARGETS:
        raise unknown_name("target", target, targets.TARGETS, "target")
    settings = scoring.for_target(settings, target)
    accuracies = accuracies or {}
    unmatched = published.describe_unmatched(accuracies, features)
    if unmatched:
        _log.warning("%s", unmatched)
    rows = []
    with progress_lib.shown(progress), compilation.persistent_cache():
        for name, given in features.items():
            row = Row(name)
            try:
                where = f"features of {name!r}"
                given_accuracy = accuracies.get(name)
                source = f"accuracies[{name!r}]"
                accuracy = to_accuracy(given_accuracy, source, target)
                row = dataclasses.replace(row, accuracy=accuracy)
                parts = _parts(name, given)
                feature_set = from_arrays(*parts, where=where, target=target)
                x, y = feature_set.features, feature_set.labels
                row = dataclasses.replace(
                    row,
                    feature_dim=x.shape[-1] if x.ndim else None,
                    extract_images=len(y),
                )
                # Checked once here instead of by every measure.
                scoring.check(feature_set, where)
                rows.append(scoring.score_row(row, feature_set, settings))
            except InputError as error:
                rows.append(dataclasses.replace(row, failure=str(error)))
    rows = comparison.compare_rows(rows, settings.measures)
    provenance = {"measures": settings.measures, "options": options, "seed": seed}
    if unmatched:
        provenance["accuracies"] = unmatched
    ranking = ranking_lib.rank(
        task,
        settings.measures,
        rows,
        task_description=f"features of {len(rows)} checkpoints",
        provenance=provenance,
        metric=metrics.resolve("", target).name,
    )
    return predicted.add_prediction(ranking)


def predict(model: Any, images: Any, *, progress: bool | None = None) -> Predictions:
    """Predict the classes of images with a fine-tuned model.

    Images are decoded, turned by their EXIF orientation, resized and scaled as in
    fine-tuning.

    Example:
        rank("photos", "checkpoints", finetune=2, fields={"finetune.keep": "best"})
        predictions = predict("runs/photos/model", "new_photos")
        for file, name in zip(predictions.files, predictions.classes):
            print(file, name)

    Args:
      model: The directory that `config.finetune.keep=best` wrote, or the result of
        `load_model`, which saves time for repeated calls.
      images: A folder, whose images are found at any depth; a list of files; or an
        array, uint8 [N, h, w, 3].
      progress: Whether to show log lines and a progress bar; as for `rank`.

    Returns:
      The predictions: `files`, `classes` and `probabilities`; for several labels
      `labels` and `probabilities`; for a number `numbers`. Files that cannot be read
      are in `unreadable`, and have no row.

    Raises:
      InputError: The model cannot be used, there are no images, or they are not uint8.
    """
    # Imports inside the function, because the networks take seconds.
    from rankckpt_jax.finetune import predict as predict_lib

    with progress_lib.shown(progress), compilation.persistent_cache():
        return predict_lib.predict(model, images)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Load the model that `config.finetune.keep=best` wrote, for `predict`.

    Args:
      path: Its directory, local or in a bucket.

    Raises:
      InputError: There is no model, it is damaged, or it needs a library that is not
        installed.
    """
    # Imported inside the function, because the networks take seconds.
    from rankckpt_jax.finetune import model as model_lib

    return model_lib.load_model(path)


def _parts(name: str, given: Features) -> tuple[Any, ...]:
    """Return features, labels and, if given, logits."""
    parts: tuple[Any, ...] = ()
    if isinstance(given, Mapping):
        parts = tuple(given.get(key) for key in ("features", "labels", "logits"))
    elif isinstance(given, tuple | list):
        parts = tuple(given)
    if len(parts) not in (2, 3) or parts[0] is None or parts[1] is None:
        raise InputError(
            "Features and labels are both needed",
            where=name,
            expected="(features, labels), (features, labels, logits) or a mapping",
            found=f"{type(given).__name__} with "
            f"{sum(part is not None for part in parts)} of them",
            fix="add the label of each row of the features",
        )
    return parts
