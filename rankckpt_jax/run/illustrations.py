"""Sample images and summaries of features for the report, kept beside the results.

workdir/TASK/.images/samples.json         some preprocessed images
workdir/TASK/CHECKPOINT/summary.json      what `views.summarize` returns
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import rankckpt_jax
from rankckpt_jax.data import decode
from rankckpt_jax.data import preprocess as preprocess_lib
from rankckpt_jax.features import views
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.run import checkpoint
from rankckpt_jax.run.context import RunContext
from rankckpt_jax.storage import store


def illustrate(ranking: Ranking, context: RunContext) -> Ranking:
    """Add sample images, and the features of the two best and the two worst.

    It is not a collective: only process 0 calls it.
    """
    names = [row.checkpoint for row in ranking.scored_rows]
    summaries = [
        _summarize(context, name) for name in dict.fromkeys(names[:2] + names[2:][-2:])
    ]
    splits = context.task.splits
    samples: tuple[views.Sample, ...] = ()
    best = ranking.best
    if best is not None and best.image_size and splits:
        samples = _samples(context, best.image_size, best.preprocess)
    return dataclasses.replace(
        ranking,
        views=tuple(summary for summary in summaries if summary is not None),
        samples=samples,
        num_test=splits["test"].num_examples
        if "test" in splits and context.metric == "accuracy"
        else None,
    )


def _summarize(context: RunContext, name: str) -> views.FeatureSummary | None:
    loaded = checkpoint.load_features(context, name)
    if loaded is None:
        return None
    classes = context.task.class_names
    path = context.directory / name / "summary.json"
    key = {
        "features": loaded.checksum,
        "classes": list(classes),
        "version": rankckpt_jax.__version__,
    }
    stored = store.read_result(path, key)
    if stored is not None:
        fields = {field: _immutable(value) for field, value in stored.result.items()}
        return views.FeatureSummary(**fields)
    summary = views.summarize(
        name, loaded.features, loaded.labels, classes, loaded.target
    )
    store.save_result(path, key, dataclasses.asdict(summary))
    return summary


def _samples(
    context: RunContext, size: int, preprocess: str
) -> tuple[views.Sample, ...]:
    split = context.task.splits["train"]
    path = context.directory / ".images" / "samples.json"
    key = {
        "images": split.fingerprint,
        "orientation": split.orientation,
        "size": size,
        **preprocess_lib.key(preprocess),
        "jpeg_decoder": decode.JPEG_DECODER,
        "version": rankckpt_jax.__version__,
    }
    stored = store.read_result(path, key)
    if stored is not None:
        return tuple(
            views.Sample(name, size, base64.b64decode(jpeg))
            for name, jpeg in stored.result["samples"]
        )
    samples = views.samples(
        split, context.task.class_names, size=size, preprocess=preprocess
    )
    encoded = [
        [sample.class_name, base64.b64encode(sample.jpeg).decode()]
        for sample in samples
    ]
    store.save_result(path, key, {"samples": encoded})
    return samples


def _immutable(value: Any) -> Any:
    """Turn the lists that JSON made of tuples back into tuples."""
    return tuple(map(_immutable, value)) if isinstance(value, list) else value
