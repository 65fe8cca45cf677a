"""Warnings of the same kind, grouped over checkpoints and measures."""

import pytest

from rankckpt_jax.results.grouped_warnings import GroupedWarning, group_warnings
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


def _group(*texts, topic="nleep"):
    rows = [Row(f"net{i}", warnings={topic: text}) for i, text in enumerate(texts)]
    return [warning.text for warning in group_warnings(rows)]


def test_group_warnings_groups_equal_warnings():
    rows = [
        Row("a", warnings={"task": "classes are missing"}),
        Row("b", warnings={"leep": "no classifier", "task": "classes are missing"}),
    ]
    assert group_warnings(rows) == (
        GroupedWarning(("task",), "classes are missing", ("a", "b")),
        GroupedWarning(("leep",), "no classifier", ("b",)),
    )
    text = str(rank("task", ["nleep"], rows))
    assert "Warning, task of 2 checkpoints: classes are missing" in text


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            ["Too few (6 in 197 dimensions).", "Too few (2.5 in 35 dimensions)."],
            "Too few (2.5 to 6 in 35 to 197 dimensions).",
        ),
        (["Only 9 of 3,060 images.", "Only 1,204 of 3,060 images."], "9 to 1,204 of 3"),
        (["It is -4.61, so.", "It is -4.1, so."], "It is -4.61 to -4.1, so."),
        (["A ridge of 1e-06.", "A ridge of 2e-05."], "of 1e-06 to 2e-05."),
        (["299 x 299 pixels", "64 x 64 pixels"], "64 x 64 to 299 x 299 pixels"),
        (["It is above 5%.", "It is above 7%."], "above 5 to 7%."),
    ],
)
def test_group_warnings_merges_numbers_to_ranges(texts, expected):
    [text] = _group(*texts)
    assert expected in text


@pytest.mark.parametrize(
    "texts",
    [
        # Digits that are part of a name, a path, an option or a version.
        ["equal those of net1: remove one", "equal those of net2: remove one"],
        ["in runs/1/a.npy", "in runs/2/a.npy"],
        ["pass --config.shard=1/4", "pass --config.shard=2/4"],
        ["resnet_v1_50", "resnet_v1_101"],
        ["needs 0.8.1", "needs 0.8.2"],
        ["too few: 3 images", "too many: 4 images"],
    ],
)
def test_group_warnings_keeps_other_differences(texts):
    assert _group(*texts) == texts


def test_group_warnings_takes_no_checkpoints_name_for_a_number():
    rows = [
        Row("1"),
        Row("2"),
        Row("3", warnings={"features": "Its features equal those of 1."}),
        Row("4", warnings={"features": "Its features equal those of 2."}),
    ]
    assert [w.checkpoints for w in group_warnings(rows)] == [("3",), ("4",)]


def test_group_warnings_groups_topics_with_the_same_checkpoints():
    few = "There are no more images (54) than dimensions."
    rows = [
        Row("a", warnings={"lda": few, "sfda": few, "knn": few}),
        Row("b", warnings={"lda": few, "sfda": few}),
    ]
    assert group_warnings(rows) == (
        GroupedWarning(("lda", "sfda"), few, ("a", "b")),
        GroupedWarning(("knn",), few, ("a",)),
    )
