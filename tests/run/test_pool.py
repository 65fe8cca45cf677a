"""Which checkpoints are found, what is said of the others."""

import shutil

import pytest

from rankckpt_jax.benchmark import neucrab
from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.configs import default
from rankckpt_jax.errors import InputError
from rankckpt_jax.run import pool


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(download, "reachable", lambda url: False)


@pytest.fixture
def config(tmp_path):
    made = default.get_config()
    made.neucrab = "group_i,group_ii,group_iii"
    made.download.directory = str(tmp_path / "downloads")
    made.workdir = str(tmp_path / "runs")
    made.image_size = 32
    return made


@pytest.fixture
def archive(tmp_path, pool):
    """A directory with some of the authors' archive, other weights in it."""
    for name in (
        *("imagenet_mobilenet_v1_025/model.ckpt-300000",),
        *("places_res50/model.ckpt-180000", "places_res50/model.ckpt-200000"),
    ):
        target = tmp_path / "archive" / "rank_ckpt" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        for file in (pool / "first").glob("model.ckpt.*"):
            ending = file.name.removeprefix("model.ckpt")
            shutil.copy(file, target.with_name(target.name + ending))
    return tmp_path / "archive"


def test_what_is_there_is_ranked_and_the_rest_is_listed_once(config, archive, caplog):
    config.checkpoints = str(archive)
    members = pool.members(config)
    assert len(members) == 40
    by_name = {member.name: member for member in members}
    loaded = by_name["imagenet_mobilenet_v1_025-300000"].load()
    assert loaded.architecture == "mobilenet_v1_025"
    assert by_name["inat_res50-300000"].group == "group_i, group_ii"
    assert by_name["imagenet_inception_v3-300000"].facts["source_accuracy"] == 78.0

    (told,) = [r.getMessage() for r in caplog.records if "NeuCRaB" in r.getMessage()]
    assert "3 of 40 checkpoints are here" in told
    downloads = config.download.directory
    assert neucrab.ARCHIVE in told
    folder = f"{downloads}/storage.googleapis.com/gresearch/rank_ckpt"
    assert f"{folder}/rank_ckpt.zip" in told
    assert "https://storage.googleapis.com/vtab/wae-ukl/1.tar.gz" in told
    assert f"{downloads}/tfhub.dev/vtab/wae-ukl/1.tar.gz" in told
    # A run that has other steps is not helped by the archive.
    assert "places_res50/model.ckpt-300000 is not there" in told
    for name in ("wae-ukl", "imagenet_inception_v1-300000"):
        with pytest.raises(InputError, match="no network"):
            by_name[name].load()


def test_a_missing_step_names_the_nearest_and_is_not_replaced(config, archive):
    config.checkpoints = str(archive)
    config.neucrab = "group_i"
    by_name = {member.name: member for member in pool.members(config)}
    with pytest.raises(InputError) as refused:
        by_name["places_res50-300000"].load()
    told = str(refused.value)
    assert "180000, 200000" in told and "ranks 200000 in its place" in told
    assert "README" in told and "nearest_step" in told

    config.nearest_step = True
    by_name = {member.name: member for member in pool.members(config)}
    stand_in = by_name["places_res50-200000"]
    assert "in place of places_res50/model.ckpt-300000" in stand_in.warning
    assert stand_in.load().source.endswith("model.ckpt-200000")
    # Where that step is ranked anyway it stands in for nothing.
    config.neucrab = "group_i,group_ii"
    names = [member.name for member in pool.members(config)]
    assert names.count("places_res50-200000") == 1 and "places_res50-300000" in names


def test_an_archive_put_there_by_hand_is_unpacked(config, archive, tmp_path):
    place = tmp_path / "downloads/storage.googleapis.com/gresearch/rank_ckpt"
    place.mkdir(parents=True)
    shutil.make_archive(str(place / "rank_ckpt"), "zip", archive)
    config.neucrab = "group_iii"
    by_name = {member.name: member for member in pool.members(config)}
    found = by_name["imagenet_mobilenet_v1_025-300000"].load()
    assert str(place) in found.source


def test_modules_are_looked_for_in_directories_and_downloads(tmp_path):
    entry = next(e for e in neucrab.CHECKPOINTS if e.name == "sup-100")
    kept = download.Storage(tmp_path / "downloads")
    assert pool.locate(entry, [tmp_path], kept) is None
    put = tmp_path / "downloads/tfhub.dev/vtab/sup-100/1.tar.gz"
    put.parent.mkdir(parents=True)
    put.write_bytes(b"")
    assert pool.locate(entry, [tmp_path], kept) == entry.path
    own = tmp_path / "vtab/sup-100/1"
    own.mkdir(parents=True)
    (own / "saved_model.pb").write_bytes(b"")
    assert pool.locate(entry, [tmp_path], kept) == str(own)


def test_nothing_at_all_is_an_error_that_lists_everything(config):
    with pytest.raises(InputError, match="can be downloaded") as refused:
        pool.members(config)
    for entry in neucrab.CHECKPOINTS:
        assert entry.name in str(refused.value)


def test_with_network_modules_are_left_to_loading(config, monkeypatch):
    monkeypatch.setattr(download, "reachable", lambda url: True)
    monkeypatch.setattr(
        pool.handles, "resolve", lambda *_: (_ for _ in ()).throw(InputError("down"))
    )
    config.neucrab = "group_i"
    members = {member.name: member for member in pool.members(config)}
    assert len(members) == 16
    assert members["vae"].load.args[-1] == "https://tfhub.dev/vtab/vae/1"
    config.image_size = 0
    members = {member.name: member for member in pool.members(config)}
    assert members["vae"].load.args[-1].endswith("/vae/1#image_size=128")


def test_an_unknown_group_is_refused(config):
    config.neucrab = "group_iv"
    with pytest.raises(InputError, match="group_iv"):
        pool.check(config)
