import pytest

from rankckpt_jax.benchmark import published
from rankckpt_jax.errors import InputError
from rankckpt_jax.results.row import Row


def test_load_accuracies_selects_the_task():
    found, source = published.load_accuracies("published", "flowers_1k")
    assert found["vae"] == pytest.approx(0.1825)
    assert source == published.SOURCE
    assert published.load_accuracies("published", "pets")[0] == {}
    assert published.load_accuracies("", "flowers") == ({}, "")


def load(path, text):
    path.write_text(text)
    return published.load_accuracies(str(path), "pets")[0]


def test_load_accuracies_reads_heading_and_percentages(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("checkpoint,accuracy\na,81.5\nb,50\n\n")
    found, source = published.load_accuracies(str(file), "pets")
    assert found == {"a": 0.815, "b": 0.5} and source == "mine.csv"


@pytest.mark.parametrize(
    "text",
    [
        "a,0.87\nb,0.5\n",
        "\ufeffa,0.87\nb,0.5\n",
        "a;0,87\nb;0,5\n",
        'a,"87,0"\nb,"50,0"\n',
        "a;87,0 %\nb;50 %\n",
        "name;Accuracy (%)\na;87\nb;50\n",
    ],
)
def test_load_accuracies_reads_the_formats_of_spreadsheets(tmp_path, text):
    assert load(tmp_path / "mine.csv", text) == {"a": 0.87, "b": 0.5}


def test_load_accuracies_detects_percentages_per_file(tmp_path):
    file = tmp_path / "mine.csv"
    assert load(file, "a,1.0000001\nb,0.5\nc,0\n") == {"a": 1, "b": 0.5, "c": 0}
    assert load(file, "a,100.00001\nb,50\nc,0\n") == {"a": 1, "b": 0.5, "c": 0}
    found = load(file, "name,percent\na,80.1\nb,0.95\n")
    assert found == pytest.approx({"a": 0.801, "b": 0.0095})
    assert load(file, "a,0.5 %\nb,90 %\n") == {"a": 0.005, "b": 0.9}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,80.1\nb,0.95\n",
            r"mix[\s\S]*lines 1 and 2[\s\S]*80.1 for 'a' and 0.95",
        ),
        ("a,80.1\nb,1\n", "mix fractions and percentages"),
        ("a,80 %\nb,0.9\n", "80% for 'a' and 0.9 for 'b'"),
        ("a,0.5\nb,100.1\n", "mix fractions and percentages"),
        ("a,50\nb,100.1\n", r"'b' is out of range[\s\S]*line 2"),
        ("a,0.5\nb,-0.1\n", r"'b' is out of range[\s\S]*line 2"),
        ("name,accuracy\n", "no accuracies"),
    ],
)
def test_load_accuracies_refuses_ambiguous_files(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path / "mine.csv", text)


def test_describe_unmatched_names_the_nearest_checkpoint():
    text = published.describe_unmatched(
        ["resnet-50", "zzz", "vit"], ["resnet_50", "vit"]
    )
    assert text == (
        "2 of 3 accuracies match no checkpoint: "
        "'resnet-50' (did you mean 'resnet_50'?), 'zzz'"
    )
    assert published.describe_unmatched(["a"], ["a", "b"]) == ""


def test_merge_accuracies_keeps_measured_ones():
    rows = [Row("a", accuracy=0.9), Row("b"), Row("c")]
    filled = published.merge_accuracies(rows, {"a": 0.1, "b": 0.2}, "file")
    assert [row.accuracy for row in filled] == [0.9, 0.2, None]
    assert [row.accuracy_source for row in filled] == ["", "file", ""]


def test_load_accuracies_raises_for_bad_line_or_missing_file(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("a,0.5\nb,high\n")
    with pytest.raises(InputError, match="line 2"):
        published.load_accuracies(str(file), "pets")
    with pytest.raises(InputError, match="cannot be read"):
        published.load_accuracies(str(tmp_path / "none.csv"), "pets")
