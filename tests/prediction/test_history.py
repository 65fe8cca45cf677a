"""Reading, merging and appending histories of fine-tunings."""

import concurrent.futures
import http.server
import threading

import numpy as np
import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError
from rankckpt_jax.prediction import (
    history,
    history_file,
    history_lines,
    merge_histories,
)
from rankckpt_jax.prediction.history_lines import Entry, plain_name


def entry(task="pets", checkpoint="a", accuracy=0.9, date="2026-12-01", **cells):
    """An entry whose fingerprints follow from its names."""
    known = {
        "task": task,
        "checkpoint": checkpoint,
        "accuracy": str(accuracy),
        "seed": "0",
        "protocol": "all weights; 96 px",
        "task_fingerprint": f"t{task}",
        "checkpoint_fingerprint": f"c{checkpoint}",
        "date": date,
        "nleep": "-0.5",
    }
    return Entry({k: v for k, v in {**known, **cells}.items() if v}, "here")


POOL = [entry(t, c, a) for t, c, a in [("pets", "a", 0.9), ("pets", "b", 0.8)]]


def write(directory, *entries):
    return history_file.append(directory, entries)


def facts(found):
    keys = ("task", "checkpoint", "seed", "accuracy")
    return [tuple(e.get(k) for k in keys) for e in found.entries]


def only_file(directory):
    [path] = directory.glob("*.csv")
    return path


def test_append_round_trips_through_read_table(tmp_path):
    scores = {"nleep": "-0.42", "nleep_spread": "0.01", "nleep_seconds": "2.5"}
    more = {"family": "resnet", "test_images": "250", "parameters": "25000000"}
    entries = [
        entry(c, n, a, seed=s, **scores, **(more if n == "a" else {"test_images": ""}))
        for c in ("pets", "cars")
        for n, a in (("a", 0.91), ("b", 0.85))
        for s in ("0", "1")
    ]
    assert write(tmp_path, *entries) == 8
    table = evaluation.read_table(only_file(tmp_path))
    assert table.measures == ("nleep",) and table.seeds == ("0", "1")
    assert table.checkpoints["a"].statics == {"parameters": 25e6}
    assert table.checkpoints["a"].family == "resnet"
    for task in table.tasks:
        assert task.checkpoints == ("a", "b") and task.num_test == 250
        np.testing.assert_allclose(task.accuracies, [0.91, 0.85], rtol=1e-15)
        np.testing.assert_array_equal(task.spreads["nleep"], [0.01, 0.01])
        np.testing.assert_array_equal(task.seconds["nleep"], [2.5, 2.5])
    again = history.read(tmp_path).table("all weights; 96 px")
    assert again is not None and again.checkpoints == table.checkpoints


def test_append_makes_a_directory_for_its_user_only(tmp_path):
    write(tmp_path / "a" / "b", *POOL)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_append_of_known_results_changes_nothing(tmp_path):
    write(tmp_path, *POOL)
    before = only_file(tmp_path).stat().st_mtime_ns
    later = [entry("pets", "a", 0.9, date="2027-01-01")]
    assert write(tmp_path, *later) == 0
    assert only_file(tmp_path).stat().st_mtime_ns == before


def test_append_completes_a_line_with_scores_of_more_measures(tmp_path):
    write(tmp_path, *POOL)
    assert write(tmp_path, entry("pets", "a", 0.9, nleep="", logme="0.3")) == 1
    assert write(tmp_path, entry("pets", "c", 0.7)) == 1
    found = history.read(tmp_path)
    assert [e.get("logme") for e in found.entries] == ["0.3", "", ""]
    assert [e.get("nleep") for e in found.entries] == ["-0.5"] * 3
    assert not found.notes


def test_append_replaces_an_accuracy_of_the_same_fine_tuning(tmp_path):
    write(tmp_path, *POOL)
    write(tmp_path, entry("pets", "a", 0.95, date="2026-12-02"))
    found = history.read(tmp_path)
    assert facts(found) == [("pets", "a", "0", "0.95"), ("pets", "b", "0", "0.8")]
    assert not found.notes
    evaluation.read_table(only_file(tmp_path))


def test_append_keeps_what_a_person_has_changed(tmp_path):
    write(tmp_path, *POOL)
    path = only_file(tmp_path)
    lines = path.read_text().splitlines()
    notes = ("mine", "x", "y")
    lines = [f"{line},{note}" for line, note in zip(lines, notes, strict=True)]
    lines[1] = lines[1].replace("pets,a,", "secret,my net,")
    lines[2] = lines[2].replace("pets,b,", "secret,b,")
    path.write_text("\r\n".join([*lines, "", '"damaged']) + "\r\n")
    assert write(tmp_path, entry("pets", "a", 0.91, logme="1")) == 1
    assert write(tmp_path, entry("pets", "c", 0.7)) == 1
    found = history.read(tmp_path)
    assert [e.get("task") for e in found.entries] == ["secret"] * 3
    assert [e.get("checkpoint") for e in found.entries] == ["my net", "b", "c"]
    assert found.entries[0].get("accuracy") == "0.91"
    text = path.read_text()
    assert "mine,logme" in text and ",x,1\n" in text and ",y,\n" in text
    assert '\n"damaged\n' in text
    assert found.notes == (f"{path}, line 5: skipped, it has not 22 cells",)


def test_protocols_are_kept_apart(tmp_path):
    head = [entry("pets", e.get("checkpoint"), 0.5, protocol="head only") for e in POOL]
    write(tmp_path, *POOL, *head)
    assert len(list(tmp_path.glob("*.csv"))) == 2
    found = history.read(tmp_path)
    assert set(found.protocols) == {"all weights; 96 px", "head only"}
    for protocol, mean in (("all weights; 96 px", 0.85), ("head only", 0.5)):
        table = found.table(protocol)
        assert table is not None and table.name == protocol
        np.testing.assert_allclose(table.tasks[0].accuracies.mean(), mean)
        assert len(found.of_protocol(protocol)) == 2


def test_damaged_lines_are_skipped_and_named(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "task,checkpoint,accuracy,nleep,note\n"
        "pets,a,0.9,-0.5,\n"
        "pets,b\n"
        "pets,c,high,-0.5,\n"
        "pets,d,0.9,bad,\n"
        ",e,0.9,1,\n"
        'pets,"f,0.9,1,\n'
        "pets,g,-0.1,1,\n"
        "pets,h,,1,\n"
        "\n"
        "pets,z,0.8,-0.9,read\n"
    )
    found = history.read(tmp_path)
    assert [e.get("checkpoint") for e in found.entries] == ["a", "z"]
    notes = [note.removeprefix(f"{path}, ") for note in found.notes]
    assert [note.partition(":")[0] for note in notes] == [
        f"line {number}" for number in range(3, 10)
    ]
    assert notes[1:4] == [
        "line 4: skipped, accuracy is not a number: 'high'",
        "line 5: skipped, nleep is not a number: 'bad'",
        "line 6: skipped, it has no task",
    ]
    assert found.table("") is not None


def test_read_notes_a_file_that_is_no_history(tmp_path):
    write(tmp_path, *POOL)
    (tmp_path / "other.csv").write_text("name;value\n1;2\n")
    (tmp_path / "other_judgment.csv").write_text("name,value\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\x00")
    found = history.read(tmp_path)
    assert len(found.entries) == 2
    assert len(found.notes) == 2
    assert "binary.csv" in found.notes[0] and "other.csv, line 1" in found.notes[1]


def test_percentages_become_fractions(tmp_path):
    for header, values in (("accuracy", (91, 85)), ("accuracy %", (0.5, 85))):
        path = tmp_path / "shared.csv"
        lines = [f"pets,{name},{v}\n" for name, v in zip("ab", values, strict=True)]
        path.write_text(f"task,checkpoint,{header}\n" + "".join(lines))
        found = history.read(shared=[str(path)])
        assert [e.accuracy for e in found.entries] == [v / 100 for v in values]
    path.write_text("task,checkpoint,accuracy\npets,a,0.9\npets,b,85\n")
    found = history.read(shared=[str(path)])
    assert facts(found) == [("pets", "a", "", "0.9")]
    assert "line 3: skipped, accuracy is out of range: 85" in found.notes[0]


def test_the_latest_of_contradicting_accuracies_counts(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    write(own, *POOL)
    write(other, entry("pets", "a", 0.7, date="2026-12-05", logme="2"))
    found = history.read(own, [str(other)])
    assert facts(found)[0] == ("pets", "a", "0", "0.7")
    # Of its scores, those of both are kept.
    assert found.entries[0].get("nleep") == "-0.5"
    assert found.entries[0].get("logme") == "2"
    [note] = found.notes
    assert "the latest date counts: pets / a: 0.9 (" in note and "and 0.7 (" in note
    # The order of the sources decides nothing, and equal results are no contradiction.
    assert facts(history.read(other, [str(own)])) == facts(found)
    assert not history.read(own, [str(own)]).notes


def test_merge_takes_each_score_of_the_latest_entry_that_has_it():
    third = entry(date="2026-12-03", nleep="", logme="3")
    first = entry(date="2026-12-01", nleep="1")
    second = entry(date="2026-12-02", nleep="2")
    [merged] = history.merge([third, first, second]).entries
    assert (merged.get("nleep"), merged.get("logme")) == ("2", "3")
    assert merged.get("date") == "2026-12-03"


def test_fingerprints_tell_equal_names_apart():
    other = entry("pets", "a", 0.5, task_fingerprint="t2", checkpoint_fingerprint="c2")
    renamed = entry("PETS 2", "copy of b", 0.8, date="2026-12-09")
    renamed = Entry({**renamed.cells, **{k: POOL[1].get(k) for k in FINGERPRINTS}})
    found = history.merge([*POOL, other, renamed])
    names = [(e.get("task"), e.get("checkpoint")) for e in found.entries]
    assert names[:2] == [("PETS 2", "a"), ("PETS 2", "copy of b")]
    task, checkpoint = names[2]
    assert task == "pets" and checkpoint.startswith("a~")


FINGERPRINTS = ("task_fingerprint", "checkpoint_fingerprint")


def test_lines_without_fingerprints_belong_to_the_name():
    by_hand = {"task_fingerprint": "", "checkpoint_fingerprint": ""}
    found = history.merge(
        [
            *POOL,
            entry("Pets", "B", 0.8, date="2026-12-02", **by_hand),
            entry("Pets", "new", 0.6, **by_hand),
        ]
    )
    assert facts(found) == [
        ("Pets", "a", "0", "0.9"),
        ("Pets", "B", "0", "0.8"),
        ("Pets", "new", "0", "0.6"),
    ]


def test_merge_gives_checkpoints_the_names_of_a_pool():
    found = history.merge(POOL, checkpoints={"ca": "network", "new": "b"})
    first, second = (e.get("checkpoint") for e in found.entries)
    # `b` of the pool is another network than the `b` that was recorded.
    assert first == "network" and second.startswith("b~")
    assert facts(history.merge(found.entries, checkpoints={"cb": "b"}))[1][1] == "b"


def test_table_leaves_out_the_task_that_is_predicted(tmp_path):
    cars = [entry("cars", c, a) for c, a in (("a", 0.5), ("b", 0.6))]
    found = history.merge([*POOL, *cars, entry("birds", "a", 0.9)])
    [protocol] = found.protocols
    table = found.table(protocol, without_task="tpets")
    assert table is not None and [task.name for task in table.tasks] == ["cars"]
    assert history.merge(POOL).table(protocol, without_task="tpets") is None
    assert history.merge([entry()]).table(protocol) is None
    assert history.merge([entry(c, nleep="") for c in "ab"]).table(protocol) is None


def append_one(arguments):
    directory, number = arguments
    return write(directory, entry("pets", f"net{number}", 0.5, **{f"m{number}": "1"}))


def test_concurrent_writers_lose_nothing(tmp_path):
    jobs = [(tmp_path, number) for number in range(24)]
    # Threads have file locks of their own, as processes have.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(append_one, jobs)) == 24
    found = history.read(tmp_path)
    assert {e.get("checkpoint") for e in found.entries} == {
        f"net{number}" for _, number in jobs
    }
    assert all(e.get(f"m{e.get('checkpoint')[3:]}") == "1" for e in found.entries)


def test_append_to_a_bucket_writes_one_file_per_run(tmp_path, monkeypatch):
    monkeypatch.setattr(history_file.files, "is_on_bucket", lambda path: True)
    assert write(tmp_path, *POOL) == 2
    assert write(tmp_path, POOL[0], entry("pets", "c", 0.7)) == 1
    assert write(tmp_path, *POOL) == 0
    assert len(list(tmp_path.glob("*.csv"))) == 2
    assert len(history.read(tmp_path).entries) == 3


def test_append_refuses_a_file_of_percentages(tmp_path):
    write(tmp_path, *POOL)
    path = only_file(tmp_path)
    path.write_text(path.read_text().replace("accuracy", "accuracy %"))
    with pytest.raises(InputError, match="percentages"):
        write(tmp_path, entry("pets", "c"))


def test_texts_of_others_are_made_safe(tmp_path):
    path = tmp_path / "theirs.csv"
    path.write_text("task,checkpoint,accuracy\n=cmd(),a\x1b[31m,0.5\n'@,b,0.5\n")
    found = history.read(shared=[str(path)])
    assert facts(found) == [("cmd()", "a_[31m", "", "0.5")]
    assert "line 3: skipped, it has no task" in found.notes[0]


@pytest.fixture
def url(tmp_path):
    """The address of a server with a history."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        (tmp_path / "team.csv").write_text(history_lines.to_csv(POOL))
        yield f"http://127.0.0.1:{server.server_port}/team.csv"
        server.shutdown()
        thread.join()


def test_read_takes_shared_histories_from_an_address_and_a_path(url, tmp_path):
    path = tmp_path / "more.csv"
    path.write_text(history_lines.to_csv([entry("cars", "a"), entry("cars", "b")]))
    found = history.read(None, [url, str(path)])
    assert [e.get("task") for e in found.entries] == ["pets", "pets", "cars", "cars"]
    # The address is read again each time.
    (tmp_path / "team.csv").write_text(history_lines.to_csv(POOL[:1]))
    assert len(history.read(None, [url]).entries) == 1
    with pytest.raises(InputError, match="cannot be read") as error:
        history.read(None, [url + "x?token=abc"])
    assert "404" in str(error.value) and "abc" not in str(error.value)
    (tmp_path / "team.csv").write_text("<html>")
    with pytest.raises(InputError, match="is not a history") as error:
        history.read(None, [url])
    assert url in str(error.value)


def test_read_refuses_shared_histories_that_are_missing(tmp_path):
    for place in (str(tmp_path), str(tmp_path / "none.csv"), "http://127.0.0.1:9/x"):
        with pytest.raises(InputError, match="A history cannot be read") as error:
            history.read(None, [place])
        assert place in str(error.value)


def test_locate_finds_the_directory(tmp_path, monkeypatch):
    assert history.locate("off") is None and history.locate("") is None
    monkeypatch.setenv("RANKCKPT_HISTORY", str(tmp_path))
    assert history.locate("") == tmp_path
    assert history.locate("gs://bucket/x") is not None
    monkeypatch.delenv("RANKCKPT_HISTORY")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history.locate("") == tmp_path / ".cache/rankckpt_jax/history"
    for given in ("https://host/team.csv", "team.csv"):
        with pytest.raises(InputError, match="shared_histories"):
            history.locate(given)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("/home/me/photos", "photos"),
        ("C:\\nets\\resnet50\\", "resnet50"),
        ("../..", "unnamed"),
        ("=HYPERLINK(1)", "HYPERLINK(1)"),
        ("https://me:word@host/a/b?key=x", "b?key=[hidden]"),
        ("two\nlines", "two_lines"),
        ("vtab/sup-100", "sup-100"),
    ],
)
def test_plain_name_has_no_path(given, name):
    assert plain_name(given) == name


def test_merge_histories_writes_one_file_per_protocol(tmp_path, capsys):
    write(tmp_path / "one", *POOL)
    write(tmp_path / "two", entry("pets", "c", 0.5), entry(protocol="head only"))
    places = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert merge_histories.main([*places, "--output", str(tmp_path / "all")]) == 0
    assert capsys.readouterr().out.startswith(
        "all weights; 96 px: 3 fine-tunings on 1 task\n"
        "head only: 1 fine-tuning on 1 task\n"
    )
    assert len(list((tmp_path / "all").glob("*.csv"))) == 2
    assert merge_histories.main([str(tmp_path / "none")]) == 2
    assert "A history cannot be read" in capsys.readouterr().err
