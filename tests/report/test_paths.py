"""Texts and commands without absolute paths."""

import os

import pytest

from rankckpt_jax.report import paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/pool", "…/pool"),
        ("/home/ann/my pool/", "…/my pool"),
        ("where: /home/ann/pool/a.h5, line 3", "where: …/a.h5, line 3"),
        ("['/a/b/c', '/d/e/f']", "['…/c', '…/f']"),
        (r"C:\Users\ann\pool\a.h5", "…/a.h5"),
        ("gs://pool/a/b.h5", "gs://pool/a/b.h5"),
        ("https://tfhub.dev/google/b/1", "https://tfhub.dev/google/b/1"),
        ("photos/train and ../a/b and ~/c/d", "photos/train and ../a/b and ~/c/d"),
        ("3/4 of 1 / 2 images", "3/4 of 1 / 2 images"),
    ],
)
def test_hide_directories_shortens_absolute_paths_only(text, expected):
    assert paths.hide_directories(text) == expected
    assert paths.hide_directories(expected) == expected


def test_hide_directories_hides_the_current_and_home_directory(tmp_path, monkeypatch):
    home, place = tmp_path / "home of ann", tmp_path / "my work"
    place.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(place)
    text = f"Read {place}/photos/a.jpg and {home}/pool/b.h5"
    assert paths.hide_directories(text) == "Read …/photos/a.jpg and …/pool/b.h5"


def test_relative_command_names_the_same_files(tmp_path, monkeypatch):
    home, place = tmp_path / "ann", tmp_path / "ann" / "work"
    place.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(place)
    command = (
        f"rankckpt {place}/photos {home}/pool --workdir={tmp_path}/runs "
        f"--checkpoints={place}/a,gs://b/c --seed=1"
    )
    relative = paths.relative_command(command)
    assert str(tmp_path) not in relative
    words = relative.split()
    assert words[1] == "photos"
    assert os.path.expanduser(words[2].strip("'")) == f"{home}/pool"
    assert os.path.abspath(words[3].partition("=")[2]) == f"{tmp_path}/runs"
    assert words[4:] == ["--checkpoints=a,gs://b/c", "--seed=1"]


def test_relative_command_of_no_command_is_empty():
    assert paths.relative_command("") == ""
