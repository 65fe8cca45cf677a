"""The family of a network, by the name of its architecture."""

from __future__ import annotations

import re

# Default names of Keras and of converted graphs do not name an architecture.
_UNKNOWN = re.compile(r"graph_[0-9a-f]*|(model|sequential|functional)(_\d+)?", re.I)
_TAG = re.compile(r"\..*")
_SIZES = re.compile(r"(_\d+)+$")
# The depth of "resnet50", not the version of "inception_v3".
_DEPTH = re.compile(r"(?<=[a-z]{2})\d+$")


def family(architecture: str) -> str:
    """Return the family of an architecture: its name without sizes; empty if unknown.

    Networks of one family are relatives, whatever they were trained on.

    Example:
      >>> names = ("mobilenet_v1_025", "resnet50.a1_in1k", "inception_v3", "model_1")
      >>> [family(name) for name in names]
      ['mobilenet_v1', 'resnet', 'inception_v3', '']

    Args:
      architecture: A name such as `Row.architecture`.
    """
    if _UNKNOWN.fullmatch(architecture):
        return ""
    return _DEPTH.sub("", _SIZES.sub("", _TAG.sub("", architecture)))
