"""Text of names, numbers and durations."""

import pytest

from rankckpt_jax.results import formatting


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([None], ["-"]),
        ([0.0], ["0"]),
        ([-1.23456, -0.5], ["-1.235", "-0.500"]),
        ([0.9121, 0.9124], ["0.912100", "0.912400"]),
        ([48.123, 20.5], ["48.12", "20.50"]),
        ([3_217_000, 819_000], ["3,217,000", "819,000"]),
        ([1e30, 2.0], ["1e+30", "2"]),
        ([1e-9, 2e-9], ["1e-09", "2e-09"]),
    ],
)
def test_format_scores(values, expected):
    assert formatting.format_scores(values) == expected


@pytest.mark.parametrize(
    ("format", "value", "expected"),
    [
        ("one_line", "no\n  where: \x1b[1m\n", r"no; where: \x1b[1m"),
        ("format_seconds", 0, "0.00 s"),
        ("format_seconds", 59.94, "59.9 s"),
        ("format_seconds", 59.96, "1 min 0 s"),
        ("format_seconds", 3599.7, "1 h 0 min"),
        ("format_seconds", 7260, "2 h 1 min"),
        ("format_seconds", None, "–"),
        ("format_points", 0.0004, "0.04 percentage points"),
        ("format_points", 0.018, "1.8 percentage points"),
        ("format_points", 1.0, "100.0 percentage points"),
        ("format_p_value", 0.0004, "<0.001"),
        ("format_p_value", 0.0412, "0.041"),
        ("format_p_value", None, "–"),
        ("format_large", None, "–"),
        ("format_decimal", float("nan"), "–"),
        ("ordinal", 11, "11th"),
        ("ordinal", 23, "23rd"),
        ("ordinal", 112, "112th"),
        ("ordinal", 1, "1st"),
    ],
)
def test_format(format, value, expected):
    assert getattr(formatting, format)(value) == expected
