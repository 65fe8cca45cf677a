"""Names, numbers and durations as text."""

import pytest

from rankckpt_jax.report import text


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
    assert text.format_scores(values) == expected


def test_one_line_joins_and_cleans():
    assert text.one_line("no\n  where: \x1b[1m\n") == r"no; where: \x1b[1m"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.00 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7260, "2 h 1 min"),
    ],
)
def test_format_seconds(seconds, expected):
    assert text.format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(0.0004, "0.04 points"), (0.018, "1.8 points"), (1.0, "100.0 points")],
)
def test_format_points(difference, expected):
    assert text.format_points(difference) == expected
