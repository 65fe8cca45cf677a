"""The texts of `rankckpt` alone and of `rankckpt --help`."""

from rankckpt_jax.configs import default, folder

LISTS = ("measures", "checkpoints", "networks", "tasks", "pools")
"""What `rankckpt list` prints."""

USAGE = """rankckpt ranks pre-trained image checkpoints for your classification task.

Usage: rankckpt IMAGES CHECKPOINTS... [OPTION...]

Examples:
  rankckpt demo
  rankckpt photos checkpoints
  rankckpt photos checkpoints --measures=nleep,logme --image-size=96
  rankckpt photos checkpoints --finetune=2

rankckpt --help describes images, checkpoints and options."""
"""The answer to a command without arguments."""

_HELP = """rankckpt ranks pre-trained image checkpoints for your classification task.

Usage:
  rankckpt IMAGES CHECKPOINTS... [OPTION...]
  rankckpt demo [OPTION...]
  rankckpt list {lists}
  rankckpt list checkpoints SCHEME:PATTERN
  rankckpt predict MODEL IMAGES [--output=FILE]
  rankckpt --config=FILE [OPTION...]

IMAGES is a folder with train/CLASS/*.jpg and, optionally, val/ and test/, or only
CLASS/*.jpg. It may also be a TFDS data set with its version ("caltech101:3.*.*").
CHECKPOINTS are directories, files, globs, TF-Hub handles, names (timm:NAME,
torchvision:NAME, keras:NAME, hf-hub:ORG/NAME), or @FILE with one of these per line.
Every checkpoint below a directory is ranked. PyTorch weights need the name of their
network: FILE.pth#model=resnet50. A folder named `demo`, `list` or `predict` is written
./demo, ./list or ./predict.

MODEL is the directory of a fine-tuned model, which a run with --finetune and
--config.finetune.keep=best writes. Its IMAGES are a folder with images at any depth.

Options:
  --measures=NAME,...    measures, or `all`; the first one orders the ranking
                         (default: {measures})
  --image-size=PIXELS    side of the images (default: each checkpoint's own)
  --finetune[=TOP]       also fine-tune the TOP best-ranked checkpoints, or all
  --workdir=DIR          directory or bucket of all results (default: {workdir})
  --seed=NUMBER          seed of random starts and of the order of images
                         (default: {seed})
  --output=FILE          file of the predictions (default: predictions.csv)
  --plan=TOPOLOGY        run nothing; print memory, FLOP and time on these devices:
                         v5e:2x4 and other TPU slices, h200:8, or `here`
  --config.FIELD=VALUE   any other field, such as --config.task.limit=1000
  --config=FILE          start from another config, such as configs/caltech.py
  --debug                show the traceback of an input error

Examples:
  rankckpt demo
  rankckpt photos checkpoints
  rankckpt photos "nets/*.keras" --measures=nleep,logme --image-size=96
  rankckpt photos timm:resnet50.a1_in1k "timm:convnext_*" keras:ResNet50
  rankckpt photos checkpoints --finetune=2
  rankckpt photos checkpoints --finetune=2 --config.finetune.keep=best
  rankckpt predict runs/photos/model new_photos
  rankckpt photos checkpoints --config.stages=report
  rankckpt photos checkpoints --plan=v5e:2x4

Exit codes:
  0    every checkpoint was ranked
  1    some checkpoints failed, or none could be ranked; the rows give the reasons;
       with --plan, a program runs out of memory; with predict, some images cannot
       be read, and the others are predicted
  2    the input cannot be used
  75   stopped by SIGTERM, or lost a process; run it again to resume
  130  stopped by Ctrl-C; run it again to resume

`rankckpt IMAGES CHECKPOINTS` is short for --config=configs/folder.py with the fields
config.task.path and config.checkpoints. This file documents every field:
  {fields}
`python -m rankckpt_jax.main` takes the same arguments; without any it runs the demo."""


def help_text() -> str:
    """Return the text of `--help`."""
    config = folder.get_config()
    return _HELP.format(
        lists="|".join(LISTS),
        measures=config.measures,
        workdir=config.workdir,
        seed=config.seed,
        fields=default.__file__,
    )
