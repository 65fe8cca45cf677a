import re
import shlex

import pytest

from rankckpt_jax import short_form, usage
from rankckpt_jax.configs import demo
from rankckpt_jax.errors import InputError
from tests.command_line import call, parse


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder for images, `photos`, and one for checkpoints, `nets`."""
    for name in ("photos", "nets", "demo"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


SHORT_AND_LONG = [
    ("", ""),
    ("--measures=logme,nleep", "--config.measures=logme,nleep"),
    ("--image-size=96", "--config.image_size=96"),
    ("--image_size 96", "--config.image_size=96"),
    ("--workdir out --seed=3", "--config.workdir=out --config.seed=3"),
    (
        "--finetune=2",
        "--config.stages=extract,score,finetune,report --config.finetune.top=2",
    ),
    (
        "--finetune 2 --config.finetune.num_steps=9",
        "--config.stages=extract,score,finetune,report --config.finetune.top=2 "
        "--config.finetune.num_steps=9",
    ),
    ("--finetune", "--config.stages=extract,score,finetune,report"),
    ("--finetune=all", "--config.stages=extract,score,finetune,report"),
    ("--nofinetune", ""),
    (
        "--finetune --config.stages=extract,score,ablate,report",
        "--config.stages=extract,score,ablate,finetune,report",
    ),
    ("--config.batch_size 8", "--config.batch_size=8"),
    ("--config.nearest_step", "--config.nearest_step=true"),
    ("--config.task.limit=5 --debug", "--config.task.limit=5"),
]


@pytest.mark.parametrize(("short", "long"), SHORT_AND_LONG)
@pytest.mark.parametrize("words_last", [False, True])
def test_parse_short_form_equals_long_form(here, short, long, words_last):
    words, options = ["photos", "nets"], short.split()
    # A flag may stand anywhere.
    given = [*options, *words] if words_last else [words[0], *options, words[1]]
    prefix = "--config=configs/folder.py --config.task.path=photos "
    expected = parse(*f"{prefix} --config.checkpoints=nets {long}".split()).config
    # `--finetune nets` must not read the folder as a number.
    assert parse(*given).config.to_dict() == expected.to_dict()


def test_parse_joins_checkpoints(here):
    handle = "https://tfhub.dev/vtab/sup-100/1"
    config = parse("photos", "nets/*", handle, "demo").config
    assert config.checkpoints == f"nets/*,{handle},demo"


def test_parse_reads_a_tfds_data_set(here, tmp_path):
    config = parse("caltech101:3.*.*", "nets").config
    assert (config.task.tfds, config.task.path) == ("caltech101:3.*.*", "")
    # Of several fields that are set, `task.path` has precedence.
    (tmp_path / "own.py").write_text(
        "from rankckpt_jax.configs import folder\n"
        "def get_config():\n"
        "  config = folder.get_config()\n"
        "  config.task.path = 'photos'\n"
        "  return config\n"
    )
    config = parse("caltech101:3.*.*", "nets", "--config", "own.py").config
    assert (config.task.tfds, config.task.path) == ("caltech101:3.*.*", "")


def test_parse_starts_the_demo_by_name_or_as_the_implied_word():
    expected = demo.get_config()
    assert parse("demo").config.to_dict() == expected.to_dict()
    assert parse(implied=["demo"]).config.to_dict() == expected.to_dict()
    config = parse("--workdir=out", "--measures=logme", implied=["demo"]).config
    assert config.measures == "logme"
    assert config.checkpoints == "out/pretrained"


def test_parse_reaches_folders_named_like_a_command(here):
    config = parse("./demo", "nets").config
    assert config.task.path == "./demo"


def test_parse_adds_options_to_another_config():
    config = parse("--config=configs/features.py", "--measures=logme").config
    assert config.measures == "logme"


def test_parse_reads_checkpoints_of_the_benchmark_without_a_word(here):
    config = parse("photos", "--config.neucrab=group_i").config
    assert (config.task.path, config.checkpoints) == ("photos", "")


@pytest.mark.parametrize("name", usage.LISTS)
def test_parse_list_equals_the_flag(name):
    assert parse("list", name).names == parse(f"--list={name}").names == name


@pytest.mark.parametrize("words", [["list", "checkpoints"], ["--list=checkpoints"]])
def test_parse_list_takes_a_pattern_of_checkpoints(words):
    command = parse(*words, "timm:resnet*")
    assert (command.names, command.pattern) == ("checkpoints", "timm:resnet*")


@pytest.mark.parametrize(
    "name", ["timm:resnet50", "hf-hub:me/net", "@pool.txt", "net.pth#model=resnet50"]
)
def test_parse_accepts_names_that_are_no_paths(here, name):
    assert parse("photos", name).config.checkpoints == name


def test_parse_without_arguments_returns_the_usage():
    assert parse().text == usage.USAGE
    for flag in ("--help", "-h"):
        assert parse("photos", flag, "--config.zzz=1").text == usage.help_text()


@pytest.mark.parametrize("text", [usage.USAGE, usage.help_text()])
def test_usage_examples_parse(here, tmp_path, text):
    for name in ("checkpoints", "new_photos", "runs/photos/model"):
        (tmp_path / name).mkdir(parents=True)
    examples = re.findall(r"^  (rankckpt .*)$", text.partition("Examples:")[2], re.M)
    assert len(examples) >= 4
    for example in examples:
        _, *arguments = shlex.split(example)
        command = parse(*arguments)
        assert command.config is not None or command.model, example


def test_usage_names_every_option_and_exit_code():
    text = usage.help_text()
    for option in [*short_form.OPTIONS.values(), "--finetune", "--debug"]:
        assert f"  {option}" in text
    for code in (0, 1, 2, 75, 130):
        assert re.search(rf"^  {code} ", text, re.M)
    assert max(map(len, text.splitlines())) <= 88


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photos", "No checkpoints are given"),
        ("lst", "No folder of images is named 'lst'"),
        ("no/photos nets", "No folder of images is named 'no/photos'"),
        ("caltech101 nets", "(caltech101:3.*.*)"),
        ("photos nets no/net", "No checkpoint is named 'no/net'"),
        ("lst measures", "commands demo, list and predict"),
        ("list", "one of measures, checkpoints, networks, tasks"),
        ("list mesures", "did you mean 'measures'?"),
        ("list measures nets", "found: measures, nets"),
        ("list checkpoints timm:a timm:b", "with quotes"),
        ("photos resnet50", "timm:NAME"),
        ("demo nets", "./demo"),
        ("demo --config=configs/folder.py", "leave out `demo` or --config"),
        ("--measures=nleep", "No images and checkpoints are given"),
        ("photos nets --image-size=many", "'many'"),
        ("photos nets --finetune=0", "a whole number of at least 1"),
        ("photos nets --finetune=best", "`all`"),
        ("photos nets --mesures=nleep", "Did you mean: measures"),
        ("photos nets --seed=1 --config.seed=2", "config.seed is given twice"),
        ("photos nets --config.checkpoints=x", "also as CHECKPOINTS"),
        ("photos nets --config.pretrain.batch_size=8", "no such field"),
        ("photos nets --config=configs/none.py", "configs/none.py"),
    ],
)
def test_parse_raises_one_message(here, given, message):
    with pytest.raises(InputError) as raised:
        parse(*given.split())
    assert message in str(raised.value)
    assert str(raised.value).count("\n") < 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--config=configs/folder.py", "--config.chekpoints=x"], "'checkpoints'"),
        (["--config.mesures=nleep"], "'measures'"),
        (["--config.task.pth=x"], "'path'"),
        (["--config.zzz=1"], "no such field"),
        (["--config.batch_size=many"], "--config.batch_size=many"),
        (["--config=configs/none.py"], "configs/none.py"),
        (["--config=configs/demo.py:more"], "get_config()"),
        (["--config=configs/caltech.py:grop_i"], "group_iii"),
        (["--confg=x"], "Did you mean: config"),
        (["demo", "--config.task.path=/no/such/folder"], "/no/such/folder/train"),
    ],
)
def test_call_prints_one_message_for_bad_flags(given, message):
    text = call(given)
    assert message in text and text.count("\n") < 8


def test_call_names_swapped_arguments(image_folder, pool):
    text = call([pool, image_folder])
    assert text.startswith("Error: Images and checkpoints are swapped")
    assert f"checkpoints in {pool}, images in {image_folder}" in text
    # Two folders of images are not swapped.
    assert call([image_folder, image_folder]).startswith("Error: No checkpoints found")


@pytest.mark.parametrize(
    "given",
    [
        "predict nets photos",
        "--predict=nets --images=photos",
        "predict nets photos --output=out.csv",
    ],
)
def test_parse_predict_takes_words_or_flags(here, given):
    command = parse(*given.split())
    assert (command.model, command.images) == ("nets", "photos")
    assert command.output == ("out.csv" if "out" in given else "predictions.csv")
    assert command.config is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("predict nets", "needs a model and a folder"),
        ("predict nets photos demo", "needs a model and a folder"),
        ("predict nets photos --images=demo", "needs a model and a folder"),
        ("--predict=nets", "needs a model and a folder"),
        ("--images=photos", "needs a model and a folder"),
        ("predict absent photos", "No model is named 'absent'"),
        ("predict nets absent", "No folder of images is named 'absent'"),
    ],
)
def test_parse_predict_refuses(here, given, text):
    with pytest.raises(InputError, match=text):
        parse(*given.split())
