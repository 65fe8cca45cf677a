"""The small HTML table for a notebook."""

import re

from rankckpt_jax.configs import folder
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row


def test_to_html_shows_the_conclusion_spreads_evaluation_and_warnings(realistic):
    text = realistic._repr_html_()
    assert "<p>Use <strong>inception_v3/model.ckpt-300000</strong>.</p>" in text
    assert "following nleep would lose 1.8 percentage points" in text
    assert "<td>-0.412 <small>±0.01</small></td>" in text
    assert '<th title="Test accuracy after fine-tuning.">fine-tuned</th>' in text
    assert "± is the standard deviation of a score" in text
    assert "<td>(random order)</td>" in text and "<th title=" in text
    assert "<li>leep: no logits (random_initialization)</li>" in text
    assert '<td colspan="4">failed: two variables; found: 263 &lt; 265</td>' in text


def test_to_html_marks_warnings_and_shows_the_command():
    config = folder.get_config()
    config.task.path, config.checkpoints = "a<b", "nets"
    rows = [
        Row("a", scores={"nleep": 2.0}, warnings={"nleep": 'Too "few" images.'}),
        Row("b", scores={"nleep": 1.0}),
    ]
    provenance = {"config": config.to_dict()}
    text = rank("t", ["nleep"], rows, provenance=provenance)._repr_html_()
    mark = '<td>2.000<span title="Too &quot;few&quot; images.">*</span></td>'
    assert mark in text and "* marks a score with a warning" in text
    assert re.search(r"<pre>rankckpt .*a&lt;b.* nets --finetune=2</pre>", text)
    # The warning is listed, so the conclusion does not repeat it.
    assert text.count("Too &quot;few&quot; images.") == 2
    assert "recall@1" not in text


def test_to_html_has_no_style_or_script(hostile, degenerate):
    for ranking in hostile, degenerate:
        text = ranking._repr_html_()
        tags = set(re.findall(r"<(\w+)", text))
        assert tags <= {
            *("h4", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"),
            *("small", "span", "pre", "ul", "li"),
        }
        assert " style=" not in text and " on" not in "".join(re.findall("<.*?>", text))
