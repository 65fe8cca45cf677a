"""`config.score_on`: every checkpoint is scored on the same stratified subset."""

import numpy as np
import pytest

from rankckpt_jax.data import splits
from rankckpt_jax.errors import InputError
from rankckpt_jax.features import extract
from rankckpt_jax.measures.statistics import sampling
from rankckpt_jax.run import run as run_lib
from rankckpt_jax.run import subset
from tests.run.test_run import make_config


def make_split(labels, target="classes"):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return splits.array_split("train", images, labels, target)


@pytest.mark.parametrize("sizes", [(50, 50), (3, 40, 200), (1, 5, 6, 7)])
def test_stratified_order_keeps_the_shares_of_all_classes(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat(range(len(sizes)), sizes))
    order = sampling.stratified_order(labels, seed=3, least=5)
    assert sorted(order) == list(range(len(labels)))
    first = np.minimum(sizes, 5)
    for n in range(first.sum(), len(labels) + 1):
        counts = np.bincount(labels[order[:n]], minlength=len(sizes))
        assert (counts >= first).all()
        # Classes that have their first images hold back until the others catch up, so
        # that no class exceeds its share.
        share = n * np.array(sizes) / len(labels)
        assert (counts <= np.maximum(np.ceil(share), first)).all()
    assert (order == sampling.stratified_order(labels, seed=3, least=5)).all()
    assert (order != sampling.stratified_order(labels, seed=4, least=5)).any()


def test_draw_keeps_five_images_of_a_rare_class():
    split = make_split(np.repeat([0, 1, 2], [100, 90, 6]))
    drawn = subset.draw(split, 20, seed=0)
    assert (np.diff(drawn.rows) > 0).all() and drawn.split.num_examples == 20
    assert np.bincount(drawn.split.labels).tolist()[2] == 5
    assert drawn.split.name == "train-20-of-196"
    pixels = [int(e.read().item()) for e in drawn.split.examples(None, 0, 1, 0)]
    assert pixels == drawn.rows.tolist()


def test_draw_stratifies_numbers_and_several_labels():
    numbers = np.random.default_rng(0).normal(size=200)
    drawn = subset.draw(make_split(numbers, "regression"), 50, seed=0)
    # Five images of each tenth.
    ranks = np.argsort(np.argsort(numbers))[drawn.rows]
    assert np.bincount(ranks // 20).tolist() == [5] * 10
    several = np.random.default_rng(0).random((300, 3)) < [0.9, 0.5, 0.03]
    drawn = subset.draw(make_split(several, "multi_label"), 40, seed=0)
    assert drawn.split.labels[:, 2].sum() >= 5


@pytest.mark.parametrize("count", [1, 14])
def test_draw_raises_for_fewer_images_than_classes_need(count):
    split = make_split(np.repeat([0, 1, 2, 3], [50, 50, 3, 2]))
    with pytest.raises(InputError, match="at least 15 of 105") as error:
        subset.draw(split, count, seed=0)
    assert "--config.score_on=15" in str(error.value)
    assert subset.draw(split, 15, seed=0).split.num_examples == 15


def test_draw_raises_for_a_stream():
    stream = splits.Split("train", 9, lambda: "", lambda *_: iter(()))
    with pytest.raises(InputError, match="cannot be selected"):
        subset.draw(stream, 5, seed=0)


def test_run_extracts_and_scores_the_subset_only(
    image_folder, pool, tmp_path, monkeypatch
):
    config = make_config(
        image_folder, pool, tmp_path / "runs", measures="knn", score_on=15
    )
    ranking = run_lib.run(config)
    [total] = {row.train_images for row in ranking.rows}
    assert total > 15
    for row in ranking.rows:
        assert row.extract_images == 15 and "15 images" in row.images
        low, high = row.intervals["knn"]
        assert low < row.scores["knn"] < high
        assert len(row.half_scores["knn"]) == subset.HALVES
    saved = 2 * (total - 15)
    text = str(ranking)
    assert f"{saved} of {2 * total} images were not extracted" in text
    assert f"{saved} of {2 * total} images" in ranking.to_html()
    assert "knn_all_images_upper" in ranking.to_csv()

    # Other numbers of images, and all of them, are stored beside it.
    everything = run_lib.run(
        make_config(image_folder, pool, tmp_path / "runs", measures="knn")
    )
    assert "not extracted" not in str(everything)
    monkeypatch.setattr(extract, "extract", lambda *_, **__: pytest.fail("extracted"))
    again = run_lib.run(config)
    assert [row.scores for row in again.rows] == [row.scores for row in ranking.rows]
    # Features of all images serve every subset.
    config.score_on = 16
    taken = run_lib.run(config)
    assert {row.extract_images for row in taken.rows} == {16}
    assert run_lib.run(config).rows == taken.rows


def test_take_of_complete_features_equals_extraction(image_folder, pool, tmp_path):
    measures = "h_score,knn"
    fields = {"measures": measures, "score_on": 15, "num_bootstrap": 2}
    apart = make_config(image_folder, pool, tmp_path / "apart", **fields)
    first = run_lib.run(apart)
    run_lib.run(make_config(image_folder, pool, tmp_path / "b", measures=measures))
    second = run_lib.run(make_config(image_folder, pool, tmp_path / "b", **fields))
    # float32 sums of batches of another composition.
    for one, other in zip(first.rows, second.rows, strict=True):
        assert one.checkpoint == other.checkpoint
        assert one.scores == pytest.approx(other.scores, rel=1e-4)


@pytest.mark.parametrize("count", [-1, True, 2.5, "10"])
def test_run_raises_for_invalid_score_on(image_folder, pool, tmp_path, count):
    config = make_config(image_folder, pool, tmp_path / "runs")
    with config.ignore_type():
        config.score_on = count
    with pytest.raises(InputError, match="images to score on"):
        run_lib.run(config)


def test_run_raises_before_extraction_if_the_subset_is_too_small(
    image_folder, pool, tmp_path
):
    config = make_config(image_folder, pool, tmp_path / "runs", score_on=3)
    with pytest.raises(InputError, match="Too few images to score on"):
        run_lib.run(config)
    assert not list(tmp_path.glob("runs/*/first/features"))


@pytest.mark.parametrize("sizes", [(10, 10), (1, 3, 5, 8), (1, 1), (7,)])
def test_half_holds_half_of_each_class(sizes):
    groups = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    random, counts = np.random.default_rng(0), np.zeros(sum(sizes))
    for _ in range(400):
        rows = sampling.half(groups, random)
        assert (np.diff(rows) > 0).all()
        counts[rows] += 1
        for group in groups:
            drawn = np.isin(group, rows).sum()
            assert drawn in {max(len(group) // 2, 1), -(-len(group) // 2)}
        # Odd images of classes alternate.
        shared = [size for size in sizes if size > 1]
        assert abs(len(rows) - (len(sizes) - len(shared)) - sum(shared) / 2) <= 0.5
    expected = np.repeat([1 if size == 1 else 0.5 for size in sizes], sizes)
    # Four standard deviations of a share of 400 draws.
    np.testing.assert_allclose(counts / 400, expected, atol=4 * 0.5 / 20)
