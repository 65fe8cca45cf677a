import shutil

import pytest
from etils import epath

from rankckpt_jax.benchmark import locate, neucrab
from rankckpt_jax.checkpoints.fetch import download
from rankckpt_jax.configs import default
from rankckpt_jax.errors import InputError
from rankckpt_jax.run import pool
from rankckpt_jax.storage import network


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(network, "reachable", lambda url: False)


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
    """Some files of the authors' archive, with other weights."""
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


def test_members_lists_missing_checkpoints_once(config, archive, caplog):
    config.checkpoints = str(archive)
    members = pool.members(config)
    assert len(members) == 40
    by_name = {member.name: member for member in members}
    loaded = by_name["imagenet_mobilenet_v1_025-300000"].load()
    assert loaded.architecture == "mobilenet_v1_025"
    assert by_name["inat_res50-300000"].group == "group_i, group_ii"
    assert by_name["imagenet_inception_v3-300000"].facts["source_accuracy"] == 78.0

    [text] = [r.getMessage() for r in caplog.records if "NeuCRaB" in r.getMessage()]
    assert "3 of 40 checkpoints are on this machine" in text
    downloads = config.download.directory
    assert neucrab.ARCHIVE in text
    folder = f"{downloads}/storage.googleapis.com/gresearch/rank_ckpt"
    assert f"{folder}/rank_ckpt.zip" in text
    assert "https://storage.googleapis.com/vtab/wae-ukl/1.tar.gz" in text
    assert f"{downloads}/tfhub.dev/vtab/wae-ukl/1.tar.gz" in text
    # The archive does not help a run that has other steps.
    assert "places_res50/model.ckpt-300000 is missing" in text
    for name in ("wae-ukl", "imagenet_inception_v1-300000"):
        with pytest.raises(InputError, match="no network"):
            by_name[name].load()


def test_members_replaces_missing_step_only_with_nearest_step(config, archive):
    config.checkpoints = str(archive)
    config.neucrab = "group_i"
    by_name = {member.name: member for member in pool.members(config)}
    with pytest.raises(InputError) as refused:
        by_name["places_res50-300000"].load()
    text = str(refused.value)
    assert "180000, 200000" in text and "rank step 200000 in its place" in text
    assert "README" in text and "nearest_step" in text

    config.nearest_step = True
    by_name = {member.name: member for member in pool.members(config)}
    stand_in = by_name["places_res50-200000"]
    assert "in place of places_res50/model.ckpt-300000" in stand_in.warning
    assert stand_in.load().source.endswith("model.ckpt-200000")
    # A step that is ranked anyway replaces nothing.
    config.neucrab = "group_i,group_ii"
    names = [member.name for member in pool.members(config)]
    assert names.count("places_res50-200000") == 1 and "places_res50-300000" in names


def test_members_unpacks_archive_copied_by_hand(config, archive, tmp_path):
    directory = tmp_path / "downloads/storage.googleapis.com/gresearch/rank_ckpt"
    directory.mkdir(parents=True)
    shutil.make_archive(str(directory / "rank_ckpt"), "zip", archive)
    config.neucrab = "group_iii"
    by_name = {member.name: member for member in pool.members(config)}
    backbone = by_name["imagenet_mobilenet_v1_025-300000"].load()
    assert str(directory) in backbone.source


def test_find_searches_directories_before_downloads(tmp_path):
    [entry] = [e for e in neucrab.CHECKPOINTS if e.name == "sup-100"]
    storage = download.Storage(tmp_path / "downloads")
    locations = locate.Locations((epath.Path(tmp_path),), storage)
    assert locations.find(entry) is None
    archive = tmp_path / "downloads/tfhub.dev/vtab/sup-100/1.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"")
    assert locations.find(entry) == entry.path
    module = tmp_path / "vtab/sup-100/1"
    module.mkdir(parents=True)
    (module / "saved_model.pb").write_bytes(b"")
    assert locations.find(entry) == str(module)


def test_members_raises_if_every_checkpoint_is_missing(config):
    with pytest.raises(InputError, match="can be downloaded") as error:
        pool.members(config)
    for entry in neucrab.CHECKPOINTS:
        assert entry.name in str(error.value)


def test_members_leaves_downloads_of_modules_to_loading(config, monkeypatch):
    def fail(*_):
        raise InputError("down")

    monkeypatch.setattr(network, "reachable", lambda url: True)
    monkeypatch.setattr(pool.uris, "resolve", fail)
    config.neucrab = "group_i"
    members = {member.name: member for member in pool.members(config)}
    assert len(members) == 16
    assert members["vae"].load.args == ("https://tfhub.dev/vtab/vae/1",)
    config.image_size = 0
    members = {member.name: member for member in pool.members(config)}
    assert members["vae"].load.args[0].endswith("/vae/1#image_size=128")


def test_check_raises_for_unknown_group(config):
    config.neucrab = "group_iv"
    with pytest.raises(InputError, match="group_iv"):
        pool.check(config)
