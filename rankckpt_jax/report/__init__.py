"""A ranking as files: `ranking.csv` for programs, `report.html` for people."""

from etils import epath

from rankckpt_jax.report import columns as table
from rankckpt_jax.report import page
from rankckpt_jax.results.ranking import Ranking
from rankckpt_jax.storage import files

CSV_NAME = "ranking.csv"
HTML_NAME = "report.html"


def write(ranking: Ranking, directory: epath.PathLike) -> epath.Path:
    """Writes `ranking.csv` and `report.html` into a directory.

    Each file is written under a temporary name and then renamed, so a reader never
    meets half of one. Files of an earlier call are replaced.

    Args:
      ranking: The ranking, from `rankckpt_jax.results.ranking.rank`.
      directory: A local directory or bucket prefix; made where it does not exist.

    Returns:
      The path of `report.html`.
    """
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    html = directory / HTML_NAME
    files.write_text_atomically(directory / CSV_NAME, table.to_csv(ranking))
    files.write_text_atomically(html, page.to_html(ranking))
    return html
