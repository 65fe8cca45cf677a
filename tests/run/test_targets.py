"""Whole runs for several labels, for numbers and for imbalanced classes."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests import command_line
from tests.data import test_targets

OPTIONS = (
    *("--image-size=32", "--finetune", "--config.finetune.frozen"),
    *("--config.finetune.num_steps=20", "--config.finetune.batch_size=8"),
    "--config.finetune.recipe=quick",
)


def write_images(folder, target):
    """Write colored images with labels.csv, in which the colors are the labels."""
    names = test_targets.make_images(folder, 30)
    random = np.random.default_rng(0)
    lines = []
    for name in names:
        strengths = random.integers(0, 2, 3) * random.integers(60, 130, 3)
        pixels = random.integers(0, 120, (16, 16, 3)) + strengths
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        own = [c for c, s in zip(("red", "green", "blue"), strengths, strict=True) if s]
        label = {
            "multi_label": "|".join(own),
            "regression": str(strengths.sum() / 7),
            "classes": "red" if own == ["red"] else "other",
        }[target]
        lines.append(f"{name},{label}")
    (folder / "labels.csv").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("target", "measures", "metric", "option"),
    [
        ("multi_label", "h_score,logme", "mean_average_precision", ""),
        ("regression", "logme,nleep", "r2", ""),
        ("classes", "logme", "balanced_accuracy", "balanced_accuracy"),
    ],
)
def test_rankckpt_ranks_and_fine_tunes_each_target(
    tmp_path, pool, target, measures, metric, option
):
    images, workdir = tmp_path / "task", tmp_path / "runs"
    write_images(images, target)
    arguments = [
        *(str(images), str(pool), *OPTIONS),
        *(f"--measures={measures}", f"--workdir={workdir}"),
    ]
    if option:
        arguments.append(f"--config.finetune.metric={option}")
    assert command_line.call(arguments) == "ran"
    content = json.loads((workdir / "task" / "ranking.json").read_text())
    assert content["metric"] == metric
    first = measures.split(",")[0]
    for row in content["rows"]:
        assert np.isfinite(row[first]) and not row["failure"]
        assert row["accuracy"] == row[f"test_{metric}"]
    # NLEEP needs classes.
    assert "nleep" not in content["measures"]
    measured = {n for n in content["rows"][0] if n.startswith("test_")}
    others = {f"test_{found['name']}" for found in content["other_metrics"]}
    assert others == measured - {f"test_{metric}"} != set()
    with (workdir / "task" / "ranking.csv").open(newline="") as file:
        assert all(line["metric"] == metric for line in csv.DictReader(file))
    page = (workdir / "task" / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 8
    if target == "classes":
        assert "the majority class alone reaches" in page
    # Another run loads everything.
    assert command_line.call([*arguments, "--config.stages=report"]) == "ran"
    again = json.loads((workdir / "task" / "ranking.json").read_text())
    assert again["rows"] == content["rows"]
