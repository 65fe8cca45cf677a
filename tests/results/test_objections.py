"""The evidence against a recommendation."""

import pytest

from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize


def _conclude(rows, *measures):
    return summarize(rank("task", measures or ["nleep"], rows)).conclusion


_TEN = [i / 20 for i in range(1, 11)]
_SWAPPED = [2, 1, 4, 3, 6, 5, 8, 7, 10, 9]


@pytest.mark.parametrize("is_measure", [False, True])
def test_find_objections_names_a_baseline_that_does_better(is_measure):
    rows = [
        Row(
            str(i),
            scores={"nleep": s} | ({"num_parameters": i} if is_measure else {}),
            accuracy=a,
            num_parameters=100 * i,
        )
        for i, (s, a) in enumerate(zip(_SWAPPED, _TEN, strict=True))
    ]
    measures = ["nleep", "num_parameters"] if is_measure else ["nleep"]
    assert _conclude(rows, *measures).against[0] == (
        "A trivial baseline does better: sorting by number of parameters gives tau "
        "1.00."
    )


def test_find_objections_names_a_baseline_that_prefers_another():
    rows = [
        Row("a", scores={"nleep": 2}, source_accuracy=70.0, num_parameters=2),
        Row("b", scores={"nleep": 1}, source_accuracy=75.0, num_parameters=1),
    ]
    expected = "Sorting by source accuracy puts b first."
    assert _conclude(rows).against == (expected,)
    rows[0] = Row("a", scores={"nleep": 2}, num_parameters=1)
    rows[1] = Row("b", scores={"nleep": 1}, num_parameters=2)
    expected = "Sorting by number of parameters puts b first."
    assert _conclude(rows).against == (expected,)
    rows[0] = Row("a", scores={"nleep": 2}, num_parameters=2)
    assert _conclude(rows).against == ()


def test_find_objections_names_a_better_measure_with_its_significance():
    accuracies = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rows = [
        Row(str(i), scores={"nleep": s, "leep": i}, accuracy=a)
        for i, (s, a) in enumerate(zip([2, 1, 3, 4, 6, 5], accuracies, strict=True))
    ]
    [sentence] = _conclude(rows, "nleep", "leep").against
    assert sentence.startswith("leep agrees better (tau 1.00), but over 6 checkpoints")
    # Two checkpoints prove nothing.
    assert not _conclude(rows[:2], "nleep", "leep").against
    rows = [
        Row(row.checkpoint, scores={"nleep": -i, "leep": i}, accuracy=row.accuracy)
        for i, row in enumerate(rows)
    ]
    [sentence] = _conclude(rows, "nleep", "leep").against
    assert sentence.startswith("leep agrees better (tau 1.00), p-value 0.0")


def test_find_objections_quotes_the_warning_of_the_recommended_score():
    rows = [
        Row("a", scores={"nleep": 2}, warnings={"nleep": "At chance (0.1)."}),
        Row("b", scores={"nleep": 1}, warnings={"nleep": "At chance (0.2)."}),
    ]
    assert _conclude(rows).against == ("At chance (0.1 to 0.2).",)
    rows[0] = Row("a", scores={"nleep": 2})
    assert not _conclude(rows).against


def test_find_objections_names_saturated_measures():
    rows = [
        Row(
            name,
            scores={"nleep": score, "h_score": 4.0, "lda": 1.0},
            saturated={"h_score": "interpolation", "lda": "interpolation"},
        )
        for name, score in (("a", 2), ("b", 1))
    ]
    assert _conclude(rows, "nleep", "h_score", "lda").against == (
        "h_score, lda are saturated here (interpolation) and rank nothing.",
    )
    assert _conclude(rows, "nleep", "lda").against == (
        "lda is saturated here (interpolation) and ranks nothing.",
    )


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(96, 224), (96, 96)], "Images of 96 pixels are far from the own size of a ("),
        ([(224, 160), (224, 224)], ""),
        ([(224, 128), (64, 224)], "Images of 64 to 224 pixels are far from the own si"),
        ([(96, None), (None, 224)], ""),
    ],
)
def test_find_objections_names_images_far_from_their_own_size(sizes, expected):
    rows = [
        Row(name, scores={"nleep": -i}, image_size=used, own_image_size=own)
        for i, (name, (used, own)) in enumerate(zip("ab", sizes, strict=True))
    ]
    assert "".join(_conclude(rows).against).startswith(expected)
    assert bool(expected) == bool(_conclude(rows).against)


def test_find_objections_names_few_images():
    rows = [
        Row(n, scores={"nleep": s}, extract_images=54, feature_dim=1024)
        for n, s in (("a", 2), ("b", 1))
    ]
    assert _conclude(rows).against == (
        "There are only 54 images for 1,024 feature dimensions.",
    )


def test_conclude_moves_further_objections_to_the_details():
    rows = [
        Row(
            name,
            scores={"nleep": -i, "lda": 1.0},
            saturated={"lda": "interpolation"},
            warnings={"nleep": "Too few images."},
            source_accuracy=i,
            image_size=32,
            own_image_size=224,
        )
        for i, name in enumerate("ab")
    ]
    conclusion = _conclude(rows, "nleep", "lda")
    assert len(conclusion.against) == 3
    assert conclusion.details[0].startswith("lda is saturated")
