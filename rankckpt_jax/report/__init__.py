"""A ranking as files: `ranking.csv`, `ranking.json` and `report.html`."""

from etils import epath

from rankckpt_jax.report import csv, json, page
from rankckpt_jax.results.summary import Summary
from rankckpt_jax.storage import files

CSV_NAME = "ranking.csv"
JSON_NAME = "ranking.json"
HTML_NAME = "report.html"


def write(summary: Summary, directory: epath.PathLike) -> epath.Path:
    """Write a ranking as CSV, JSON and HTML into a directory.

    Each file is written under a temporary name and then renamed, so that a reader never
    reads an incomplete file. Existing files are replaced.

    Args:
      summary: The summary of the ranking.
      directory: A local directory or bucket prefix. It is created if missing.

    Returns:
      The path of `report.html`.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    html = directory / HTML_NAME
    files.write_text_atomically(directory / CSV_NAME, csv.to_csv(summary.ranking))
    files.write_text_atomically(directory / JSON_NAME, json.to_json(summary))
    files.write_text_atomically(html, page.to_html(summary))
    return html
