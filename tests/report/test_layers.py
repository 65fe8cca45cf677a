import json

from rankckpt_jax.report import page
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize


def make_row(name, blocks, scores, **fields):
    best = max(scores, key=lambda layer: scores[layer] or -9)
    return Row(
        name,
        scores={"nleep": scores[best]},
        blocks=blocks,
        layers={"nleep": best},
        layer_scores={"nleep": scores},
        **fields,
    )


RANKING = rank(
    "photos",
    ["nleep"],
    [
        make_row("one", ("a", "b<i>"), {"last": -0.75, "a": -1.25, "b<i>": -0.5}),
        # Its last block is its last features, and a score is saturated.
        make_row("two", ("c", "d", "e"), {"last": -0.625, "c": None, "d": -2.0}),
        Row("three", scores={"nleep": -3.0}),
    ],
)


def test_page_shows_scores_of_each_layer():
    text = page.to_html(summarize(RANKING))
    section = text[text.index("Scores by layer</h2>") :]
    section = section[: section.index("</section>")]
    assert "b&lt;i&gt;" in section and "b<i>" not in section
    for shown in ("-0.750", "-0.500", "-1.250", "-0.625", "-2.000", "Block −3"):
        assert shown in section
    assert section.count('class="number best"') == 2
    assert "three" not in section


def test_json_and_conclusion_name_the_layers():
    summary = summarize(RANKING)
    rows = json.loads(RANKING.to_json())["rows"]
    assert rows[0]["layer_scores"]["nleep"] == {"last": -0.75, "a": -1.25, "b<i>": -0.5}
    assert rows[1]["layer_scores"]["nleep"]["c"] is None
    assert [row["nleep_layer"] for row in rows] == ["b<i>", "last", ""]
    sentence = "It is a block for 1 of 2 checkpoints."
    assert any(sentence in text for text in summary.conclusion.details)
    assert "optimistic" in str(RANKING)
    assert "b<i>" in str(RANKING)


def test_page_has_no_section_for_one_layer():
    ranking = rank("photos", ["nleep"], [Row("one", scores={"nleep": -1.0})])
    assert "Scores by layer" not in page.to_html(summarize(ranking))
