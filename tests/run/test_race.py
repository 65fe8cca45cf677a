"""`config.race`: checkpoints are dropped while extraction goes on."""

import collections
import dataclasses
import shutil

import numpy as np
import PIL.Image
import pytest

from rankckpt_jax import measures
from rankckpt_jax.configs import default
from rankckpt_jax.configs import features as features_config
from rankckpt_jax.devices import signals
from rankckpt_jax.errors import InputError, Interrupted
from rankckpt_jax.features import extract
from rankckpt_jax.results.row import Row
from rankckpt_jax.run import checkpoint, race
from rankckpt_jax.run import pool as pool_lib
from rankckpt_jax.run import run as run_lib

QUALITY = {"a": 0.0, "b": 0.1, "c": 2.0, "d": 2.1, "e": 3.0, "f": 2.5}


@pytest.fixture
def config(pool, tmp_path):
    """A config of six checkpoints and 120 images of three classes."""
    random = np.random.default_rng(0)
    for i in range(120):
        path = tmp_path / f"images/train/{i % 3}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    for name in QUALITY:
        shutil.copytree(pool / "first", tmp_path / "pool" / name)
    config = default.get_config()
    config.task.path = str(tmp_path / "images")
    config.checkpoints = str(tmp_path / "pool")
    config.workdir = str(tmp_path / "runs")
    config.image_size = 32
    config.measures = "logme,knn"
    config.race = True
    return config


@pytest.fixture
def extracted(monkeypatch):
    """Replace extraction; return the images that were extracted by checkpoint."""
    seen = collections.defaultdict(list)

    def fake(backbone, split, **_):
        rows, labels = [], []
        for example in split.examples(None, 0, 1, 0):
            pixels = example.read()
            seen[backbone.name].append(pixels.tobytes())
            noise = np.random.default_rng(int(pixels.sum())).normal(size=4)
            mean = np.eye(3, 4)[example.label]
            rows.append(QUALITY[backbone.name] * mean + noise)
            labels.append(example.label)
        return {
            "features": np.asarray(rows, np.float32),
            "labels": np.asarray(labels, np.int32),
        }

    monkeypatch.setattr(extract, "extract", fake)
    return seen


def rows_of(ranking):
    return {row.checkpoint: row for row in ranking.rows}


def test_race_drops_checkpoints_and_keeps_the_scores_of_the_best(config, extracted):
    ranking = run_lib.run(config)
    total = ranking.rows[0].train_images
    names = [row.checkpoint for row in ranking.rows]
    dropped = [row for row in ranking.rows if row.dropped is not None]
    assert {row.checkpoint for row in dropped} >= {"a", "b"}
    assert names[0] == "e" and set(names[:3]) <= {"c", "d", "e", "f"}
    for row in dropped:
        assert row.dropped.images == row.extract_images < total
        assert 0 < row.dropped.behind[0] < row.dropped.behind[1]
        assert row.dropped.measure == "logme" and row.dropped.place == 3
        assert not row.scores and not row.failure
    # Each image is extracted at most once.
    for name, seen in extracted.items():
        assert len(seen) == len(set(seen)) == rows_of(ranking)[name].extract_images
    # Dropped rows come last, without a rank: those of the last round first.
    last = names[-len(dropped) :]
    assert [row.checkpoint for row in dropped] == last
    key = [(-row.dropped.images, -row.dropped.score) for row in dropped]
    assert key == sorted(key)
    assert ranking.ranks[-len(dropped) :] == (None,) * len(dropped)
    saved = sum(total - len(seen) for seen in extracted.values())
    for text in (str(ranking), ranking.to_html()):
        assert f"{saved} of {6 * total} images were not extracted" in text
        assert f"The race dropped {len(dropped)} of 6 checkpoints" in text
        assert f"dropped after {dropped[-1].extract_images} images: logme" in text
    assert "dropped after" in ranking._repr_html_()

    # Those that finished have the scores of a run without a race.
    config.race = False
    complete = rows_of(run_lib.run(config))
    for row in ranking.rows:
        if row.dropped is None:
            assert row.scores == complete[row.checkpoint].scores


def test_race_computes_nothing_twice(config, extracted, monkeypatch):
    first = run_lib.run(config)
    monkeypatch.setattr(extract, "extract", lambda *_, **__: pytest.fail("extracted"))
    monkeypatch.setattr(measures, "compute_prepared", lambda *_: pytest.fail("scored"))
    again = run_lib.run(config)
    assert again.rows == first.rows
    config.stages = "report"
    assert run_lib.run(config).rows == first.rows


def test_race_loads_each_checkpoint_once(config, extracted, monkeypatch):
    loaded = collections.Counter()
    load = pool_lib.checkpoints.load

    def counted(spec, *args, **kwargs):
        loaded[spec] += 1
        return load(spec, *args, **kwargs)

    monkeypatch.setattr(pool_lib.checkpoints, "load", counted)
    config.measures = "logme"
    run_lib.run(config)
    assert set(loaded.values()) == {1}


def test_race_resumes_after_an_interruption(config, extracted, monkeypatch):
    calls = []
    real = checkpoint.extract_split

    def stop(*args):
        calls.append(args)
        if len(calls) == 9:
            raise Interrupted("stopped")
        return real(*args)

    monkeypatch.setattr(checkpoint, "extract_split", stop)
    with pytest.raises(Interrupted):
        run_lib.run(config)
    ranking = run_lib.run(config)
    for name, seen in extracted.items():
        assert len(seen) == len(set(seen)) == rows_of(ranking)[name].extract_images
    assert not signals.should_stop()


def test_race_uses_complete_features(config, extracted, monkeypatch):
    config.race = False
    run_lib.run(config)
    monkeypatch.setattr(extract, "extract", lambda *_, **__: pytest.fail("extracted"))
    config.race = True
    assert any(row.dropped is not None for row in run_lib.run(config).rows)


def test_race_goes_on_after_a_failure(config, extracted, tmp_path):
    for file in (tmp_path / "pool/f").iterdir():
        file.write_bytes(b"damaged")
    ranking = run_lib.run(config)
    [failed] = ranking.failed
    assert failed.checkpoint == "f" and ranking.rows[-1] == failed
    assert rows_of(ranking)["a"].dropped is not None


def test_race_of_a_subset_scores_no_other_images(config, extracted):
    config.score_on = 60
    ranking = run_lib.run(config)
    assert max(map(len, extracted.values())) == 60
    assert {row.extract_images for row in ranking.scored_rows} == {60}
    assert rows_of(ranking)["a"].dropped is not None


def test_race_fine_tunes_the_best_only(config, extracted, monkeypatch):
    config.stages = "extract,score,finetune"
    config.finetune.top = 4
    tuned = []

    def finetune(context, member, row, title, on_computed):
        tuned.append(member.name)
        return dataclasses.replace(row, accuracy=0.5)

    monkeypatch.setattr(checkpoint, "finetune_later", finetune)
    ranking = run_lib.run(config)
    # The race keeps as many as are fine-tuned.
    assert sorted(tuned) == ["c", "d", "e", "f"]
    assert {row.dropped.place for row in ranking.rows if row.dropped} == {4}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"shard": "1/2"}, "without config.shard"),
        ({"measures": "num_parameters,logme"}, "does not depend on the number"),
        ({"measures": "etran"}, "relative to the pool"),
        ({"measures": "early_stopping"}, "cannot be run by early_stopping"),
    ],
)
def test_run_raises_if_there_can_be_no_race(config, fields, text):
    config.update(fields)
    with pytest.raises(InputError, match=text):
        run_lib.run(config)


@pytest.mark.parametrize("fields", [{"race": True}, {"score_on": 30}])
def test_run_raises_for_features_that_exist(tmp_path, fields):
    config = features_config.get_config()
    config.features = str(tmp_path)
    config.update(fields)
    with pytest.raises(InputError, match="no extraction to save"):
        run_lib.run(config)


@pytest.mark.parametrize(
    ("num_images", "least", "ends"),
    [(800, 10, [100, 200, 400]), (800, 150, [150, 200, 400]), (20, 20, []), (3, 3, [])],
)
def test_find_ends(num_images, least, ends):
    assert race.find_ends(num_images, least) == ends


def make_rows(scores, halves, starts=0.0, **fields):
    """Return rows of 100 of 800 images; `starts` is a variance over random starts."""
    return [
        Row(
            str(i),
            scores={"knn": float(score)},
            half_scores={"knn": tuple(values)},
            spreads={"knn": float(np.sqrt(np.var(values, ddof=1) + starts))},
            extract_images=100,
            train_images=800,
            **fields,
        )
        for i, (score, values) in enumerate(zip(scores, halves, strict=True))
    ]


def test_find_dropped_drops_no_more_than_its_level_under_the_null_hypothesis():
    # Four equal checkpoints with independent noise: dropping one is an error.
    random, errors, trials, level = np.random.default_rng(0), 0, 400, 0.05
    for _ in range(trials):
        scores = random.normal(size=4) * np.sqrt(7 / 8)
        rows = make_rows(scores, random.normal(size=(4, 8)) + scores[:, None])
        # Each comparison at level / number of comparisons, as in `race.run`.
        errors += bool(race.find_dropped(rows, "knn", 3, level / 3))
    # The bound holds up to the error of 400 trials.
    assert errors <= trials * level + 3 * np.sqrt(trials * level)


def test_find_dropped_uses_paired_differences():
    random = np.random.default_rng(0)
    common, own = random.normal(size=(1, 8)), 0.01 * random.normal(size=(4, 8))
    scores = np.array([1.0, 1.0, 1.0, 0.8])
    paired = make_rows(scores, scores[:, None] + common + own)
    assert set(race.find_dropped(paired, "knn", 3, 0.01)) == {"3"}
    independent = make_rows(scores, scores[:, None] + random.normal(size=(4, 8)))
    assert not race.find_dropped(independent, "knn", 3, 0.01)
    # Random starts are independent even if the images are the same.
    noisy = make_rows(scores, scores[:, None] + common + own, 4.0)
    assert not race.find_dropped(noisy, "knn", 3, 0.01)


def test_find_dropped_keeps_a_checkpoint_that_catches_up():
    # With half of the images the last is 0.2 further behind. After three more
    # doublings it can be ahead.
    random = np.random.default_rng(0)
    scores = np.array([1.0, 1.0, 1.0, 0.8])
    halves = scores[:, None] + 0.01 * random.normal(size=(4, 8))
    assert set(race.find_dropped(make_rows(scores, halves), "knn", 3, 0.01)) == {"3"}
    halves[3] -= 0.2
    assert not race.find_dropped(make_rows(scores, halves), "knn", 3, 0.01)
    # One that falls behind is dropped all the more.
    halves[3] += 0.4
    [dropped] = race.find_dropped(make_rows(scores, halves), "knn", 3, 0.01).values()
    assert dropped.behind[0] == pytest.approx(0.2, abs=0.05)
    assert dropped.behind[1] == pytest.approx(0.2 + 3 * 0.2, abs=0.05)


def test_find_dropped_compares_no_saturated_scores():
    random = np.random.default_rng(0)
    scores = np.array([1.0, 1.0, 1.0, 0.0])
    halves = scores[:, None] + 0.01 * random.normal(size=(4, 8))
    rows = make_rows(scores, halves)
    assert race.find_dropped(rows, "knn", 3, 0.01)
    saturated = make_rows(scores, halves, saturated={"knn": "maximum"})
    assert not race.find_dropped(saturated, "knn", 3, 0.01)
    assert not race.find_dropped(rows[:2] + rows[3:], "knn", 3, 0.01)
    # Half of the images can be too few for a score.
    for row in rows:
        row.half_scores.clear()
    assert not race.find_dropped(rows, "knn", 3, 0.01)
