import pathlib
import shutil

import pytest

from rankckpt_jax import checkpoints
from rankckpt_jax.errors import InputError
from tests import conftest as shared_fixtures

pool_of_two = shared_fixtures.pool


def touch(path: pathlib.Path, parts=("index", "data-00000-of-00001", "meta")):
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        path.with_name(f"{path.name}.{part}").touch()


@pytest.fixture
def pool(tmp_path):
    root = tmp_path / "pool"
    touch(root / "mobilenet_v1_0.25_128" / "model.ckpt")
    touch(root / "run" / "model.ckpt-90000")
    touch(root / "run" / "model.ckpt-180000")
    touch(root / "deep" / "er one" / "net.ckpt")
    touch(root / "half" / "model.ckpt", parts=("data-00000-of-00001",))
    (root / "run" / "checkpoint").touch()
    return root


def test_find_lists_and_names_all_checkpoints_below_a_folder(pool):
    assert checkpoints.find(pool) == [
        ("deep_er_one", f"{pool}/deep/er one/net.ckpt"),
        ("half", f"{pool}/half/model.ckpt"),
        ("mobilenet_v1_0.25_128", f"{pool}/mobilenet_v1_0.25_128/model.ckpt"),
        ("run-180000", f"{pool}/run/model.ckpt-180000"),
        ("run-90000", f"{pool}/run/model.ckpt-90000"),
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{}/mobilenet*", ["mobilenet_v1_0.25_128"]),
        ("{}/r*/model.ckpt-9*", ["run-90000"]),
        ("{}/*/*.index", ["mobilenet_v1_0.25_128", "run-180000", "run-90000"]),
        ("{}/run", ["run-180000", "run-90000"]),
        ("{}/run/model.ckpt-90000", ["run-90000"]),
        ("{}/half, {}/run/model.ckpt-90000.index", ["half", "run-90000"]),
    ],
)
def test_find_accepts_globs_prefixes_and_lists(pool, pattern, names):
    assert [name for name, _ in checkpoints.find(pattern.format(pool, pool))] == names


def test_find_names_keras_files_after_their_folders(tmp_path):
    """A file that is alone has the folder's name; others lose only their ending."""
    names = {
        "a/model.h5": "a",
        "b/model.keras": "b",
        "net/net.keras": "net",
        "run/best.keras": "run_best",
        "run/epoch-5.h5": "run_epoch-5",
        "flat.hdf5": "flat",
    }
    for path in names:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    found = [(name, f"{tmp_path}/{path}") for path, name in names.items()]
    assert checkpoints.find(tmp_path) == sorted(found)
    listed = f"{tmp_path}/a/model.h5,{tmp_path}/b/model.keras"
    assert [name for name, _ in checkpoints.find(listed)] == ["a", "b"]


def test_find_accepts_relative_patterns(pool, monkeypatch):
    monkeypatch.chdir(pool)
    assert len(checkpoints.find(".")) == 5
    assert [name for name, _ in checkpoints.find("*/model.ckpt-9*")] == ["run-90000"]


def test_find_gives_unique_names(tmp_path):
    touch(tmp_path / "a_b" / "model.ckpt")
    touch(tmp_path / "a" / "b" / "model.ckpt")
    assert [name for name, _ in checkpoints.find(tmp_path)] == ["a_b", "a_b~2"]


HOSTILE = ("..npz", "<script>x", "=cmd()|x", "a\nb", "a" * 250, "report.html", "--")


@pytest.mark.parametrize("folders", [("net", "Net", "NET"), HOSTILE])
def test_find_gives_valid_names_of_directories(tmp_path, folders):
    for folder in folders:
        touch(tmp_path / "pool" / folder / "model.ckpt")
    names = [name for name, _ in checkpoints.find(tmp_path / "pool")]
    # Some file systems ignore case.
    assert len(names) == len({name.casefold() for name in names}) == len(folders)
    for name in names:
        assert not name.startswith((".", "-")) and len(name) < 200
        assert not set(name) & set("/<>|\n") and name != "report.html"


def test_find_raises_without_checkpoints(tmp_path):
    with pytest.raises(InputError, match="No checkpoints"):
        checkpoints.find(tmp_path)


def test_load_raises_for_a_directory_of_several_checkpoints(pool):
    with pytest.raises(InputError, match="Not exactly one"):
        checkpoints.load(pool / "run")


def test_find_follows_links_but_no_loops(pool):
    (pool / "run" / "loop").symlink_to(pool)
    (pool / "again").symlink_to(pool / "half")
    names = [name for name, _ in checkpoints.find(pool)]
    assert names.count("half") == names.count("again") == 1 and len(names) == 6


ODD_NAMES = ("nets[1]", "a,b", "net#output=x", "nets!", "nets.zip", "half, whole")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_find_takes_existing_paths_literally(tmp_path, name):
    for folder in ("net", "other"):
        touch(tmp_path / name / folder / "model.ckpt")
    root = tmp_path / name
    expected = [(folder, f"{root}/{folder}/model.ckpt") for folder in ("net", "other")]
    assert checkpoints.find(root) == expected
    assert checkpoints.find(f"{root}/*") == expected
    # A list may hold such a path, and a prefix is a path too.
    prefix = f"{root}/net/model.ckpt"
    assert checkpoints.find(f"{prefix}, {root}/other") == expected
    assert checkpoints.find(f"{prefix}#image_size=32") == [
        ("net", f"{prefix}#image_size=32")
    ]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_load_takes_existing_paths_literally(tmp_path, pool_of_two, name):
    shutil.copytree(pool_of_two / "first", tmp_path / name / "net_32")
    directory = tmp_path / name / "net_32"
    assert checkpoints.identify(directory)
    for path in (directory, directory / "model.ckpt"):
        assert checkpoints.load(path).name == "net_32"


@pytest.mark.parametrize("scheme", ["file", "hdfs", "s3"])
def test_find_and_load_name_the_schemes_that_work(scheme):
    for read in (checkpoints.find, checkpoints.load, checkpoints.identify):
        with pytest.raises(InputError, match=r"gs://BUCKET/PATH.*https://HOST"):
            read(f"{scheme}:///nets/model.ckpt")


@pytest.mark.parametrize("missing", ["absent", "absent*", "absent#output=pooled"])
def test_find_raises_for_one_of_several_that_does_not_exist(pool, missing):
    with pytest.raises(InputError, match="No checkpoints found") as raised:
        checkpoints.find(f"{pool}/half,{pool}/{missing}")
    assert f"where: {pool}/{missing}\n" in str(raised.value)
    # Other files, as of a shell's pattern, are no checkpoints.
    assert len(checkpoints.find(f"{pool}/half,{pool}/run/checkpoint")) == 1


def test_find_reads_lists(pool, tmp_path):
    text = f"""
    # Paths are relative to this file.
    pool/half
    {pool}/r*/model.ckpt-9*
    https://tfhub.dev/vtab/vae/1#image_size=128
    """
    (tmp_path / "pool.txt").write_text(text)
    assert checkpoints.find(f"@{tmp_path}/pool.txt, {pool}/mobilenet*") == [
        ("half", f"{pool}/half/model.ckpt"),
        ("mobilenet_v1_0.25_128", f"{pool}/mobilenet_v1_0.25_128/model.ckpt"),
        ("run-90000", f"{pool}/run/model.ckpt-90000"),
        ("vtab_vae", "https://tfhub.dev/vtab/vae/1#image_size=128"),
    ]


def test_find_names_a_list_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="list of checkpoints cannot be read"):
        checkpoints.find(f"@{tmp_path}/pool.txt")


def test_find_lists_pytorch_weights_with_their_network(tmp_path):
    for name in ("a/best.pth", "a/last.pth.tar", "b/model.safetensors"):
        touch_file(tmp_path / name)
    assert checkpoints.find(f"{tmp_path}#model=resnet50") == [
        ("a_best", f"{tmp_path}/a/best.pth#model=resnet50"),
        ("a_last", f"{tmp_path}/a/last.pth.tar#model=resnet50"),
        ("b", f"{tmp_path}/b/model.safetensors#model=resnet50"),
    ]


def touch_file(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("pattern", ["{}", "{}/*.pth", "{}/a.pth", "{}/a.pth,{}/pool"])
def test_find_asks_for_the_network_of_pytorch_weights(pool, tmp_path, pattern):
    folder = tmp_path / "nets"
    touch_file(folder / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth#model=resnet50"):
        checkpoints.find(pattern.format(folder, tmp_path))


def test_find_lists_pytorch_weights_without_a_network_among_others(pool):
    """Loading them raises, as for incomplete checkpoints."""
    touch_file(pool / "a.pth")
    assert ("a", f"{pool}/a.pth") in checkpoints.find(pool)


def test_find_parts_lightning_from_tf_slim_by_the_header(tmp_path):
    """Both name their files .ckpt."""
    touch_file(tmp_path / "lightning.ckpt", b"PK\x03\x04")
    touch_file(tmp_path / "slim.ckpt")
    names = ("lightning", "slim")
    assert [n for n, _ in checkpoints.find(f"{tmp_path}/*.ckpt")] == list(names)
    with pytest.raises(InputError, match="#model="):
        checkpoints.load(tmp_path / "lightning.ckpt")
    with pytest.raises(InputError) as raised:
        checkpoints.load(tmp_path / "slim.ckpt")
    assert "#model=" not in str(raised.value)


@pytest.mark.parametrize("pattern", ["{}/nets", "{}/nets/*", "{}/nets/a.onnx"])
def test_find_names_weights_of_other_formats(tmp_path, pattern):
    touch_file(tmp_path / "nets" / "a.onnx")
    with pytest.raises(InputError) as raised:
        checkpoints.find(pattern.format(tmp_path))
    assert "found: a.onnx (ONNX)" in str(raised.value)
    assert "SavedModel" in str(raised.value)
