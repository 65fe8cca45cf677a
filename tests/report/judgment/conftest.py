"""Judgments that all tests of the reports read."""

import pytest

from rankckpt_jax import evaluation
from tests import simulated_scores


@pytest.fixture(scope="session")
def judgment():
    text = simulated_scores.make_text()
    return evaluation.judge(evaluation.parse_table(text, name="simulated"))


HOSTILE = '<script>alert("x")</script>{{ 7 * 7 }}\x1b[2J\u202e'


@pytest.fixture(scope="session", params=["hostile", "two", "constant", "outlier"])
def odd(request):
    """Judgments of odd tables: hostile names, two checkpoints, no variation."""
    head = "task,checkpoint,accuracy,measure,score\n"
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    text = {
        "hostile": head
        + "".join(
            f'{quoted},{quoted[:-1]}{i}",{0.1 * i},{quoted},{i % 3}\n' for i in range(8)
        ),
        "two": head + "t,a,0.5,m,1\nt,b,0.6,m,2\n",
        "constant": head + "t,a,0.5,m,1\nt,b,0.5,m,1\nt,c,0.5,m,1\n",
        "outlier": head
        + "".join(
            f"t,c{i},{0.5 + 0.01 * i},m,{-580_000 if i == 4 else i}\n" for i in range(9)
        ),
    }[request.param]
    return evaluation.judge(evaluation.parse_table(text, name=request.param))
