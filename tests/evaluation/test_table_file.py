"""Long and wide files, fine-tuning runs, and every error of a table."""

import math

import numpy as np
import pytest

from rankckpt_jax import evaluation
from rankckpt_jax.errors import InputError

LONG = """task,checkpoint,accuracy,measure,score
pets,a,91,nleep,-0.4
pets,b,85,nleep,-0.9
pets,a,91,leep,-0.7
pets,b,85,leep,-0.6
cars,a,40,nleep,-1.4
cars,b,55,nleep,-1.9
"""

WIDE = """task,checkpoint,accuracy,nleep,leep
pets,a,0.91,-0.4,-0.7
pets,b,0.85,-0.9,-0.6
cars,a,0.40,-1.4,
cars,b,0.55,-1.9,nan
"""


def test_long_and_wide_files_give_the_same_table():
    long, wide = map(evaluation.parse_table, (LONG, WIDE))
    assert long.measures == wide.measures == ("nleep", "leep")
    for one, other in zip(long.tasks, wide.tasks, strict=True):
        assert one.checkpoints == other.checkpoints == ("a", "b")
        np.testing.assert_allclose(one.accuracies, other.accuracies, rtol=1e-15)
        for measure in long.measures:
            np.testing.assert_array_equal(one.scores[measure], other.scores[measure])
    assert long.notes == wide.notes == ("cars: leep has no score.",)


def test_read_table_reads_a_file_with_byte_order_mark(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b"\xef\xbb\xbf" + WIDE.replace("\n", "\r\n").encode())
    table = evaluation.read_table(path)
    assert table.name == "mine"
    assert [task.name for task in table.tasks] == ["pets", "cars"]


def test_columns_of_spread_and_seconds_belong_to_their_measure():
    table = evaluation.parse_table(
        "Task, Checkpoint, accuracy %, m, m_spread, m_seconds, k, seconds\n"
        "pets, a, 0.5, 1, 0.1, 3, 1, 10\n"
        "pets, b, 50, 2, , 4, 1, 20\n"
    )
    (task,) = table.tasks
    assert table.measures == ("m", "k")
    assert task.accuracies.tolist() == [0.005, 0.5]
    np.testing.assert_array_equal(task.spreads["m"], [0.1, np.nan])
    # The seconds of the line are those that every measure needs.
    assert task.seconds["m"].tolist() == [13, 24]
    assert task.seconds["k"].tolist() == [10, 20]


def test_seeds_are_runs_and_their_scores_are_averaged():
    table = evaluation.parse_table(
        "task,checkpoint,seed,accuracy,same,other\n"
        "pets,a,0,0.5,1,1\n"
        "pets,a,1,0.7,1,3\n"
        "pets,b,0,0.4,2,5\n"
        "pets,b,1,,2,5\n"
        "pets,c,1,0.6,3,7\n"
        "pets,d,1,,4,8\n"
    )
    (task,) = table.tasks
    assert table.seeds == ("0", "1")
    assert task.checkpoints == ("a", "b", "c")
    np.testing.assert_array_equal(task.runs, [[0.5, 0.7], [0.4, np.nan], [np.nan, 0.6]])
    np.testing.assert_allclose(task.accuracies, [0.6, 0.4, 0.6])
    assert task.scores["same"].tolist() == [1, 2, 3]
    assert task.scores["other"].tolist() == [2, 5, 7]
    np.testing.assert_allclose(task.spreads["other"], [math.sqrt(2), np.nan, np.nan])
    assert np.isnan(task.spreads["same"]).all()
    assert table.notes == ("pets: d left out, without an accuracy.",)


def test_complete_runs_are_those_of_all_checkpoints():
    (task,) = evaluation.parse_table(
        "task,checkpoint,seed,accuracy,m\n"
        "t,a,0,0.5,1\nt,a,1,0.6,1\nt,a,2,0.7,1\nt,b,0,0.1,2\nt,b,2,0.2,2\n"
    ).tasks
    assert task.complete_runs.tolist() == [[0.5, 0.7], [0.1, 0.2]]


def test_properties_of_a_checkpoint_may_be_columns_or_measures():
    table = evaluation.parse_table(
        "task,checkpoint,accuracy,measure,score,family,group,num_parameters,source\n"
        "pets,a,0.5,imagenet_accuracy,71.8,res,big,25e6,web\n"
        "pets,b,0.6,imagenet_accuracy,74.1,res,,,web\n"
        "pets,a,0.5,m,1,,,,web\n"
        "pets,b,0.6,m,inf,,,,web\n"
        "pets,c,0.7,m,3,,,,web\n"
    )
    assert table.measures == ("m",)
    assert table.families == ("res",) and table.groups == ("big",)
    statics = {"parameters": 25e6, "source_accuracy": 71.8}
    assert table.checkpoints["a"].statics == statics
    np.testing.assert_array_equal(
        table.statics(table.tasks[0], "source_accuracy"), [71.8, 74.1, np.nan]
    )
    assert table.notes == (
        "Columns that are not used: source.",
        "pets: m has no score for b; it is judged on the other 2 checkpoints.",
        "Without a family, each is a family of its own: c.",
    )


def test_columns_that_describe_a_line_are_no_measures():
    table = evaluation.parse_table(
        "task,checkpoint,accuracy,protocol,date,image_size,finetune_seconds,parameters,"
        "num_parameters,num_parameters_seconds,checkpoint_fingerprint,m\n"
        "pets,a,0.5,own,2026-12-01,96,12.5,100,99,0.1,12,1\n"
        "pets,b,0.6,own,2026-12-01,96,13.5,200,199,0.1,34,2\n"
    )
    assert table.measures == ("m",) and not table.notes
    assert table.checkpoints["a"].statics == {"parameters": 100}


def test_tasks_with_one_checkpoint_are_left_out_beside_others():
    table = evaluation.parse_table(WIDE + "birds,a,0.9,1,1\n")
    assert [task.name for task in table.tasks] == ["pets", "cars"]
    assert table.notes[-1] == (
        "Tasks with fewer than two accuracies are left out: birds."
    )


HEAD = "task,checkpoint,accuracy,m\n"


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "The table is empty", "t.csv"),
        (HEAD, "header only", "t.csv"),
        ("task,checkpoint,score\na,b,1\n", "no column 'accuracy'", "line 1"),
        ("task,checkpoint,accuracy,measure\n", "no column 'score'", "line 1"),
        ("task;checkpoint;accuracy;m\na;b;1;2\n", "no column 'task'", "line 1"),
        ("task,checkpoint,accuracy\na,b,1\n", "no measure", "t.csv"),
        ("task,checkpoint,accuracy,score\na,b,1,2\n", "'score' has no mea", "line 1"),
        ("task,checkpoint,accuracy,m,m\n", "share a name", "line 1"),
        ("task,checkpoint,accuracy,m,\n", "has no name", "line 1"),
        ("task,Task,checkpoint,accuracy,m\n", "stand for 'task'", "line 1"),
        (HEAD.strip() + ",x_spread\na,b,1,2,3\n", "'x_spread' belongs to", "line 1"),
        (HEAD + "a,b,1\n", "another number of cells", "line 2"),
        (HEAD + "a,,1,2\n", "no checkpoint", "line 2, column 'checkpoint'"),
        (HEAD + "a,b,high,2\n", "not a number", "line 2, column 'accuracy'"),
        (HEAD + "a,b,1,2\na,c,1,bad\n", "not a number", "line 3, column 'm'"),
        (HEAD + "a,b,81,2\n\na,c,0.7,3\n", "mix fractions", "lines 2 and 4"),
        (HEAD + "a,b,-1,2\na,c,0.7,3\n", "out of range", "line 2, column 'accuracy'"),
        (HEAD + "a,b,101,2\na,c,99,3\n", "out of range", "line 2"),
        (HEAD + "a,b,1,2\na,b,1,3\n", "contradict each other about a score", "2 and 3"),
        (HEAD + "a,b,1,2\na,b,0,2\n", "about an accuracy", "2 and 3"),
        (HEAD + "a,b,1,2\n", "'a' has fewer than two checkpoints", "t.csv"),
        (HEAD + "a,b,1,2\na,B,1,3\n", "differ in case or blanks", "2 and 3"),
        (HEAD + "a,b 1,1,2\na,b1,1,3\n", "differ in case or blanks", "2 and 3"),
        (
            "task,checkpoint,accuracy,m,family\na,b,1,2,x\nc,b,1,2,y\n",
            "about the family",
            "lines 2 and 3",
        ),
        (
            "task,checkpoint,accuracy,m,parameters\na,b,1,2,5\nc,b,1,2,6\n",
            "about a checkpoint",
            "lines 2 and 3",
        ),
        (
            "task,checkpoint,accuracy,m,test_images\na,b,1,2,2.5\n",
            "out of range",
            "line 2, column 'test_images'",
        ),
        (
            "task,checkpoint,accuracy,m,m_seconds\na,b,1,2,-1\n",
            "out of range",
            "line 2, column 'm_seconds'",
        ),
    ],
)
def test_parse_table_refuses_an_unusable_table(text, what, where):
    with pytest.raises(InputError, match=what) as error:
        evaluation.parse_table(text, "t.csv")
    assert where in str(error.value) and "t.csv" in str(error.value)


def test_parse_table_tells_how_to_give_percentages_below_one():
    text = HEAD + "a,b,81,2\na,c,0.7,3\n"
    with pytest.raises(InputError, match="name the column 'accuracy %'"):
        evaluation.parse_table(text)
    (task,) = evaluation.parse_table(text.replace("accuracy", "accuracy %")).tasks
    np.testing.assert_allclose(task.accuracies, [0.81, 0.007], rtol=1e-15)


def test_read_table_refuses_a_missing_or_binary_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        evaluation.read_table(tmp_path / "none.csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00task")
    with pytest.raises(InputError, match="UTF-8"):
        evaluation.read_table(path)
