"""Scores and warnings that need the rows of several checkpoints."""

import pytest

from rankckpt_jax.results.comparison import compare_rows
from rankckpt_jax.results.row import Row


def test_compare_rows_warns_of_other_images():
    rows = [Row(name, images="60 images") for name in "ab"]
    rows += [Row("unknown"), Row("c", images="57 images")]
    *others, other = compare_rows(rows, [])
    assert "57 images, most others on 60 images" in other.warnings["images"]
    assert others == rows[:-1]


def test_compare_rows_warns_of_duplicates_except_failures():
    rows = [
        Row("a", fingerprint=(1.0, 2.0)),
        Row("b", fingerprint=(1.0, 2.0001)),
        Row("c", fingerprint=(1.0, 2.1)),
        Row("d", fingerprint=(1.0,)),
        Row("e", fingerprint=(1.0, 2.0), failure="x"),
        Row("f"),
        Row("g"),
    ]
    result = compare_rows(rows, [])
    assert [r.checkpoint for r in result if "features" in r.warnings] == ["b"]
    assert "equal those of a" in result[1].warnings["features"]


def test_compare_rows_combines_relative_scores():
    terms = [{"energy": value, "lda": value} for value in (1.0, 2.0, 5.0)]
    rows = [Row(str(i), terms={"etran": term}) for i, term in enumerate(terms)]
    result = compare_rows([*rows, Row("failed", failure="x")], ["etran", "lda"])
    assert [row.score("etran") for row in result] == [0.0, 0.25, 1.0, None]


def test_compare_rows_does_not_scale_rounding_errors_up():
    # All posteriors are 1 but for rounding, so the energy alone decides.
    terms = [
        {"energy": energy, "lda": lda}
        for energy, lda in ((1.0, 1.0), (2.0, 1.0 - 2e-16), (3.0, 1.0 - 1e-16))
    ]
    rows = [Row(str(i), terms={"etran": term}) for i, term in enumerate(terms)]
    scores = [row.score("etran") for row in compare_rows(rows, ["etran"])]
    assert scores == pytest.approx([0.0, 0.075, 0.15])


def test_compare_rows_warns_of_another_order_of_labels():
    rows = [Row(name, images="60 images", order="1") for name in "ab"]
    rows += [Row("unknown", images="60 images")]
    rows += [Row("shuffled", images="60 images", order="2")]
    rows += [Row("other", images="57 images", order="3")]
    for names in (["linear"], ["nleep", "linear", "mutual_information"]):
        warned = compare_rows(rows, names)
        assert [row.checkpoint for row in warned if "order" in row.warnings] == [
            "shuffled"
        ]
    assert "linear and mutual_information held out" in warned[3].warnings["order"]
    rows = compare_rows(rows, ["nleep", "knn"])
    assert not any("order" in row.warnings for row in rows)
