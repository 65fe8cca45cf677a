"""The command line: words and flags become a `Command`.

This module imports nothing slow, so that help and errors come at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from rankckpt_jax import short_form, usage
from rankckpt_jax.configs import default, folder
from rankckpt_jax.errors import InputError, unknown_name

_CONFIGS = pathlib.Path(default.__file__).parent

_HELP_FLAGS = {"--help", "-help", "--helpshort", "-h", "-?"}


@dataclasses.dataclass(frozen=True)
class Command:
    """What a command line asks for.

    Exactly one of text, names, model and config is set.

    Attributes:
      text: A text to print.
      names: Names to list, one of usage.LISTS.
      pattern: Which checkpoints to list, such as "timm:convnext*"; empty for NeuCRaB's.
      model: Directory of a model that predicts the classes of images.
      images: The folder of these images.
      output: The file of the predictions.
      config: The config to run, or to plan.
      plan: Name of the devices to plan it for; empty to run it.
      debug: Whether to show the tracebacks of input errors.
    """

    text: str = ""
    names: str = ""
    pattern: str = ""
    model: str = ""
    images: str = ""
    output: str = ""
    config: ml_collections.ConfigDict | None = None
    plan: str = ""
    debug: bool = False


def parse(
    argv: Sequence[str],
    implied: Sequence[str] = (),
    values: flags.FlagValues = flags.FLAGS,
) -> Command:
    """Parse a command line.

    Args:
      argv: The program and its arguments.
      implied: The words of a command line that has none and names no config.
      values: Receives the flags.

    Raises:
      InputError: The arguments cannot be used.
    """
    with _rewriting_errors(argv):
        argv = _complete(argv)
    if _HELP_FLAGS & set(argv):
        values.mark_as_parsed()
        return Command(text=usage.help_text())
    values.set_gnu_getopt()  # Words and flags in any order.
    with _rewriting_errors(argv):
        _define(values, argv)
        _, *words = values(argv)
        # ml_collections reports a missing file only when an attribute is read.
        values.config.keys()
    debug = values.debug
    if words[:1] == ["list"] or values.list:
        words = [values.list, *words] if values.list else words[1:]
        return _list_command(words, debug)
    if words[:1] == ["predict"] or values.predict or values.images or values.output:
        return _predict_command(words, values)
    has_config = any(argument.startswith("--config=") for argument in argv)
    if not words and not has_config:
        words = list(implied)
    if not words and len(argv) == 1:
        return Command(text=usage.USAGE)
    config = _config(words, has_config, values)
    return Command(config=config, plan=values.plan or "", debug=debug)


class _TopParser(flags.ArgumentParser[bool | int]):
    """Reads the value of `--finetune`: True for all, or the number of checkpoints."""

    def parse(self, argument: str | bool) -> bool | int:
        """Parse `all` (or nothing, which absl passes as "true"), or a number."""
        text = str(argument).lower()
        if text in ("true", "all"):
            return True
        if text == "false":  # absl's --nofinetune.
            return False
        if text.isdecimal() and int(text) > 0:
            return int(text)
        raise ValueError("it must be `all`, or a whole number of at least 1")


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    """Define all flags; `config` loads its default, the demo, immediately."""
    config_flags.DEFINE_config_file(
        "config",
        str(_CONFIGS / "demo.py"),
        "A file of configs/, or your own.",
        flag_values=values,
        sys_argv=argv,
    )
    for name in ("measures", "workdir"):
        flags.DEFINE_string(name, None, f"Sets config.{name}.", flag_values=values)
    for name in ("image_size", "seed"):
        flags.DEFINE_integer(name, None, f"Sets config.{name}.", flag_values=values)
    finetune: flags.Flag[bool | int] = flags.Flag(
        _TopParser(),
        None,
        "finetune",
        None,
        "Sets config.finetune.top, and adds the stage `finetune`.",
        boolean=True,  # The value may be omitted.
    )
    flags.DEFINE_flag(finetune, values)
    flags.DEFINE_enum(
        "list",
        None,
        usage.LISTS,
        "Print the available names and exit.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "plan",
        None,
        "Print what the config would take on some devices, such as v5e:2x4 or here.",
        flag_values=values,
    )
    for name, text in (
        ("predict", "Directory of a model; predict the classes of images and exit."),
        ("images", "The folder of images for --predict."),
        ("output", "The file of predictions (default: predictions.csv)."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
    flags.DEFINE_bool(
        "debug", False, "Show tracebacks of input errors.", flag_values=values
    )


def _config(
    words: list[str], has_config: bool, values: flags.FlagValues
) -> ml_collections.ConfigDict:
    """Return the config of a run.

    Args:
      words: Images and checkpoints, or "demo", or nothing.
      has_config: Whether a file of a config is named.
      values: The parsed flags.
    """
    config = values.config
    overrides = config_flags.get_override_values(values["config"])
    images: str | None = None
    checkpoints: list[str] = []
    if words[:1] == ["demo"]:
        _check_demo(words, has_config)
    elif words:
        images, *checkpoints = words
        _check_exist(images, checkpoints)
        if not has_config:
            config = _with_fields(folder.get_config(), overrides)
        named = config.checkpoints or config.neucrab or config.pool
        if not (checkpoints or named):
            raise InputError(
                "No checkpoints are given",
                expected="rankckpt IMAGES CHECKPOINTS",
                found=f"rankckpt {images}",
                fix="add a directory, file, glob or handle of checkpoints",
            )
    elif not has_config:
        raise InputError(
            "No images and checkpoints are given",
            expected="rankckpt IMAGES CHECKPOINTS",
            found="only options",
            fix="name both, or start the demo: rankckpt demo",
        )
    fields = short_form.to_fields(
        images,
        checkpoints or None,
        measures=values.measures,
        image_size=values.image_size,
        workdir=values.workdir,
        seed=values.seed,
        finetune=values.finetune or False,
        stages=config.get("stages", ""),
    )
    for field in fields.keys() & overrides.keys() - {"stages"}:
        raise InputError(
            f"config.{field} is given twice",
            where=f"--config.{field}",
            found=f"also as {_SHORT[field]}",
            fix="leave one of the two out",
        )
    return _with_fields(config, fields)


_SHORT = {
    "task.path": "IMAGES",
    "task.tfds": "IMAGES",
    "checkpoints": "CHECKPOINTS",
    "finetune.top": "--finetune",
    **short_form.OPTIONS,
}
"""The short form of fields."""


def _with_fields(
    config: ml_collections.ConfigDict, fields: dict[str, Any]
) -> ml_collections.ConfigDict:
    """Set fields by dotted name."""
    try:
        config.update_from_flattened_dict(fields)
    except KeyError as error:
        raise InputError(
            "The config has no such field",
            found=str(error).strip("'\""),
            fix=f"{default.__file__} documents every field",
        ) from error
    return config


def _list_command(words: list[str], debug: bool) -> Command:
    """Return the command to list names: a list's name and, optionally, a pattern."""
    name, *patterns = words or [""]
    if name in usage.LISTS and not patterns:
        return Command(names=name, debug=debug)
    if name == "checkpoints" and len(patterns) == 1:
        return Command(names=name, pattern=patterns[0], debug=debug)
    if len(words) == 1:
        raise unknown_name("list", name, usage.LISTS, "rankckpt list")
    raise InputError(
        "`rankckpt list` takes one name",
        expected="one of " + ", ".join(usage.LISTS) + ", or checkpoints and a pattern",
        found=", ".join(words) or "none",
        fix="for example rankckpt list measures, or rankckpt list checkpoints "
        "'timm:resnet*' with quotes; write a folder as ./list",
    )


def _predict_command(words: list[str], values: flags.FlagValues) -> Command:
    """Return the command to predict: a model and a folder, as words or as flags."""
    is_short = words[:1] == ["predict"]
    given = [*([] if is_short else words), values.predict, values.images]
    if is_short and (values.predict or values.images):
        given = words  # Both forms.
    elif is_short:
        given = words[1:]
    if len(given) != 2 or not all(given):
        raise InputError(
            "A prediction needs a model and a folder of images",
            expected="rankckpt predict MODEL IMAGES [--output=FILE], or "
            "--predict=MODEL --images=IMAGES [--output=FILE]",
            found=", ".join(filter(None, given)) or "neither",
            fix="for example rankckpt predict runs/photos/model new_photos; write a "
            "folder of training images as ./predict",
        )
    model, images = given
    for name, kind in ((model, "model"), (images, "folder of images")):
        if not name.startswith("gs://") and not os.path.isdir(os.path.expanduser(name)):
            raise InputError(
                f"No {kind} is named {name!r}",
                expected="a directory",
                found="a file" if os.path.exists(name) else "nothing",
                fix="a run with --config.finetune.keep=best prints the directory of "
                "its model"
                if kind == "model"
                else "check the path",
            )
    return Command(
        model=model,
        images=images,
        output=values.output or "predictions.csv",
        debug=values.debug,
    )


def _check_demo(words: list[str], has_config: bool) -> None:
    if len(words) > 1:
        raise InputError(
            "The demo takes no images and checkpoints",
            found=" ".join(words),
            fix="leave them out, or write a folder named demo as ./demo",
        )
    if has_config:
        raise InputError(
            "The demo has its own config",
            found="rankckpt demo --config=...",
            fix="leave out `demo` or --config",
        )


def _check_exist(images: str, checkpoints: list[str]) -> None:
    """Raise for a plain path that does not exist, before anything slow is imported."""
    if _is_missing(images):
        raise InputError(
            f"No folder of images is named {images!r}",
            expected="a folder, a TFDS data set with its version (caltech101:3.*.*), "
            "or one of the commands demo, list and predict",
            found="no such folder",
            fix="check the spelling; rankckpt --help describes the usage",
        )
    for name in filter(_is_missing, checkpoints):
        raise InputError(
            f"No checkpoint is named {name!r}",
            expected="a directory, file, glob, handle, or a name such as timm:resnet50",
            found="no such file or directory",
            fix="check the path; networks by name are written timm:NAME, "
            "torchvision:NAME or keras:NAME, and a list of checkpoints in a file @FILE",
        )


def _is_missing(name: str) -> bool:
    """Return whether a name is a plain local path that does not exist.

    Names with other meanings (patterns, addresses, options, lists) are checked later,
    where they are read.
    """
    is_plain = not re.search(r"[*?\[#,:]|!/|^tfhub\.dev/|^[~@]", name)
    # The prefix of a TF-Slim checkpoint is not a file itself.
    return is_plain and not os.path.exists(name) and not os.path.exists(f"{name}.index")


@contextlib.contextmanager
def _rewriting_errors(argv: Sequence[str]) -> Iterator[None]:
    """Raise InputError for whatever absl or ml_collections raise for unusable flags."""
    try:
        yield
    except Exception as error:  # ml_collections passes on whatever parsing raises.
        raise _flag_error(error, argv) from error


def _flag_error(error: Exception, argv: Sequence[str]) -> InputError:
    """Rewrite an error of absl or ml_collections in our form."""
    _, ours, text = str(error).rpartition("rankckpt_jax.errors.InputError: ")
    if ours:
        # A config raised it, and ml_collections wrapped its traceback.
        what, *lines = (line.strip() for line in text.strip().splitlines())
        parts = dict(line.split(": ", 1) for line in lines if ": " in line)
        names = ("where", "expected", "found")
        return InputError(
            what, **{n: parts.get(n, "") for n in names}, fix=parts.get("to fix", "")
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, AttributeError):
        # ml_collections: "'mesures'\nDid you mean "measures" instead of "mesures"?"
        key = str(error).strip("\"'").split("'")[0].split("\\")[0]
        given = [a for a in argv if key in a.partition("=")[0].split(".")]
        near = re.search(r'Did you mean "(\w+)"', str(error))
        hint = f"did you mean {near[1]!r}? " if near else ""
        return InputError(
            "The config has no such field",
            where=given[0] if given else key,
            fix=f"{hint}configs/default.py documents every field",
        )
    config = [a for a in argv if a.startswith("--config=")]
    where = config[-1] if config else ""
    if isinstance(error, OSError):
        return InputError(
            "The config cannot be read",
            where=where,
            expected="a Python file with get_config()",
            found=lines[-1].strip(),
            fix="name a file of configs/, such as configs/folder.py, or your own",
        )
    if "Traceback" in str(error) or "get_config" in str(error):
        found = lines[-1].strip()
        return InputError("The config failed to load", where=where, found=found)
    return InputError(
        "A flag cannot be used",
        found=lines[0],
        fix="see --help, and configs/default.py for the fields of a config",
    )


def _complete(argv: Sequence[str]) -> list[str]:
    """Return flags in the form that absl and ml_collections read.

    Files of flags (--flagfile) are inserted. `--config FILE` becomes `--config=FILE`,
    where `configs/NAME.py` also names the package's own configs. `--image-size` becomes
    `--image_size`, and `--finetune 2` becomes `--finetune=2`.
    """
    given = flags.FlagValues().read_flags_from_files(list(argv), force_gnu=True)
    completed: list[str] = []
    while given:
        argument = given.pop(0)
        if argument == "--":  # Words follow.
            return [*completed, argument, *given]
        flag, separator, value = argument.partition("=")
        if argument.startswith("-") and "config." not in flag:
            flag = flag[:2] + flag[2:].replace("-", "_")
            argument = f"{flag}{separator}{value}"
        if flag in ("--config", "-config"):
            if not separator and given:
                value = given.pop(0)
            argument = f"--config={_find_config(value)}"
        elif argument == "--finetune" and given and given[0].isdecimal():
            argument = f"{argument}={given.pop(0)}"
        completed.append(argument)
    return completed


def _find_config(value: str) -> str:
    """Return the file of a config, with the argument after a colon."""
    path, colon, argument = value.partition(":")
    own = _CONFIGS / pathlib.Path(path).name
    is_relative = os.path.normpath(path).startswith(f"configs{os.sep}")
    exists = os.path.exists(value) or os.path.exists(path)
    if exists or not (is_relative and own.is_file()):
        return value
    return f"{own}{colon}{argument}"
