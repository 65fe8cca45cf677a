"""A judgment of scores as files: `NAME_judgment.html`, `.csv` and `.json`."""

from etils import epath

from rankckpt_jax.evaluation import Judgment
from rankckpt_jax.report.judgment import data, page
from rankckpt_jax.storage import files


def write(judgment: Judgment, directory: epath.PathLike) -> epath.Path:
    """Write a judgment as HTML, CSV and JSON into a directory, and return the page.

    The directory is created if it is missing. Existing files are replaced.
    """
    directory = files.to_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    start = f"{files.directory_name(judgment.table.name)}_judgment"
    html = directory / f"{start}.html"
    files.write_text_atomically(directory / f"{start}.csv", data.to_csv(judgment))
    files.write_text_atomically(directory / f"{start}.json", data.to_json(judgment))
    files.write_text_atomically(html, page.to_html(judgment))
    return html
