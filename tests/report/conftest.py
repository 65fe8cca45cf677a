"""A realistic ranking, and hostile and degenerate ones, with their pages."""

import dataclasses
import shlex

import numpy as np
import pytest

from rankckpt_jax.features import views
from rankckpt_jax.report import page
from rankckpt_jax.results.ablation import Ablation
from rankckpt_jax.results.formatting import printable
from rankckpt_jax.results.kept_model import KeptModel
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row, Tried
from rankckpt_jax.results.summary import summarize


@pytest.fixture(scope="session")
def realistic():
    table = [
        ("mobilenet_v1_1.0_224/model.ckpt", 224, -0.412, 1.93, -0.88, 0.873, 12.4),
        ("inception_v3/model.ckpt-300000", 299, -0.431, 2.11, -1.02, 0.891, 48.2),
        ("mobilenet_v1_0.50_160/model.ckpt", 160, -0.694, 1.61, -1.21, 0.829, 6.1),
        ("mobilenet_v1_0.25_128/model.ckpt", 128, -0.958, 1.22, -1.40, 0.741, 2.9),
        ("random_initialization", 128, -2.871, 0.31, None, 0.384, 2.8),
    ]
    rows = [
        Row(
            checkpoint=name,
            architecture=name.split("/")[0],
            group="group_iii",
            scores={"nleep": nleep, "h_score": h}
            | ({} if leep is None else {"leep": leep}),
            spreads={"nleep": 0.01},
            warnings={} if leep is not None else {"leep": "no logits"},
            score_seconds={"nleep": 2.0, "h_score": 0.1, "leep": 0.01},
            accuracy=accuracy,
            extract_seconds=seconds,
            finetune_seconds=60 * seconds,
            num_parameters=3_217_226,
            feature_dim=1024,
            image_size=size,
        )
        for name, size, nleep, h, leep, accuracy, seconds in table
    ]
    rows.append(Row("resnet_v1_50", failure="two variables\n  found: 263 < 265"))
    return rank(
        "caltech101",
        ["nleep", "h_score", "leep"],
        rows,
        task_description="102 classes",
        provenance={
            "config": {"task": {"name": "caltech101"}, "seeds": (0, 1)},
            "devices": [{"kind": "cpu"}, {"kind": "cpu"}],
            "nothing": {},
        },
    )


@pytest.fixture(scope="session")
def realistic_page(realistic):
    return page.to_html(summarize(realistic))


@pytest.fixture(scope="session")
def large():
    """The summary of 40 checkpoints with long names and 23 measures."""
    measures = [f"some_measure_{i}" for i in range(23)]
    rows = [
        Row(
            f"vit_base_patch16_224.augreg2_in21k_ft_in1k_{i:02}".ljust(60, "x"),
            architecture="vision_transformer",
            scores={
                m: -1.0 + ((i * (j + 3)) % 41) / 50 for j, m in enumerate(measures)
            },
            spreads={m: 0.0123 for m in measures},
            warnings={measures[3]: "Too few images."},
            accuracy=0.5 + i / 100,
            num_parameters=86_000_000 + i,
            feature_dim=768,
            image_size=224,
            extract_seconds=3.0,
            finetune_seconds=300.0,
            score_seconds={m: 1.0 for m in measures},
        )
        for i in range(40)
    ]
    provenance = {"config": {"field": "value" * 40}}
    return summarize(rank("simulated", measures, rows, provenance=provenance))


HOSTILE = '<script>alert("x")</script>{{ 7 * 7 }}$\\frac\x1b[2J\u202e\udcff'
"""Hostile to HTML, templates, mathematical text, terminals and UTF-8."""


@pytest.fixture(scope="session")
def hostile():
    rows = [
        Row(
            name,
            architecture=HOSTILE,
            group=f"{HOSTILE},{HOSTILE}{i % 2}",
            scores={HOSTILE: float(i)},
            warnings={HOSTILE: HOSTILE},
            accuracy=0.1 * i,
            metrics={"accuracy": 0.1 * i, "auroc": 1 - 0.1 * i},
            accuracy_source=HOSTILE,
            curve=((0, 0.0), (10, 0.1 * i)),
            score_seconds={HOSTILE: 1.0},
            blocks=(HOSTILE,),
            layers={HOSTILE: HOSTILE},
            layer_scores={HOSTILE: {"last": -1.0, HOSTILE: float(i)}},
            tried=Tried(0.01, 10, 20, 0.1 * i, i == 6, 1),
            extract_seconds=1.0,
            finetune_seconds=9.0,
            image_size=32,
        )
        for i, name in enumerate([HOSTILE, "=cmd()", "+1", "-1", "@a", "\tb", "＝c"])
    ]
    rows.append(Row(f"{HOSTILE}2", failure=f"=HYPERLINK()\n{HOSTILE}"))
    provenance = {HOSTILE: {"inner": [HOSTILE]}}
    ranking = rank(
        HOSTILE,
        [HOSTILE, "=measure", *(f"measure{i}" for i in range(6))],
        rows,
        task_description=HOSTILE,
        provenance=provenance,
    )
    random = np.random.default_rng(0)
    names = [f"{HOSTILE}{i}" for i in range(3)]
    labels = np.arange(30) % 3
    return dataclasses.replace(
        ranking,
        prediction=ranking.predict(),
        kept=KeptModel(printable(HOSTILE), HOSTILE, printable(HOSTILE)),
        views=tuple(
            views.summarize(row.checkpoint, random.normal(size=(30, 4)), labels, names)
            for row in ranking.scored_rows[:2]
        ),
        samples=tuple(views.Sample(name, 32, b"jpeg") for name in names),
        ablations=(
            Ablation(
                "energy",
                HOSTILE,
                (0.5, 0.8),
                ({}, {}),
                ({"kendall": 0.1, "pearson": 0.2}, {"kendall": 0.3, "pearson": 0.4}),
                False,
                0.8,
            ),
        ),
    )


@pytest.fixture(scope="session")
def hostile_page(hostile):
    summary = summarize(hostile)
    text = printable(HOSTILE)
    conclusion = dataclasses.replace(
        summary.conclusion,
        support=(text,),
        verification=text,
        command=shlex.join(["rank", text]),
        against=(text,),
        details=(text,),
    )
    return page.to_html(dataclasses.replace(summary, conclusion=conclusion))


@pytest.fixture(
    scope="session",
    params=["empty", "failed", "one", "untuned", "unscored", "constant", "nan", "zero"],
)
def degenerate(request):
    nan = float("nan")
    rows = {
        "empty": [],
        "failed": [Row("a", failure="x"), Row("b", failure="y")],
        "one": [Row("a", scores={"nleep": -1.0}, accuracy=0.5)],
        "untuned": [Row("a", scores={"nleep": -1.0}), Row("b", scores={"nleep": -2.0})],
        "unscored": [Row("a", accuracy=0.5), Row("b", accuracy=0.6)],
        "constant": [Row(n, scores={"nleep": 1.0}, accuracy=1.0) for n in "ab"],
        "nan": [
            Row("a", scores={"nleep": nan}, accuracy=nan, finetune_seconds=nan),
            Row("b", scores={"nleep": 1.0}, spreads={"nleep": nan}, accuracy=0.5),
            Row("c", scores={"nleep": 1e30}, accuracy=0.5, extract_seconds=nan),
            Row("d", score_seconds={"nleep": nan, "leep": 1.0}, finetune_seconds=nan),
        ],
        "zero": [Row(f"{s}", scores={"nleep": s}, accuracy=0.0) for s in (0, 1)],
    }[request.param]
    return rank("task", ["nleep", "leep"], rows)
