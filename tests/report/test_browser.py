"""The page in a browser: sorting, filters, hints, print, and no requests."""

import dataclasses
import http.server
import pathlib
import shutil
import threading

import pytest

from rankckpt_jax.report import page
from rankckpt_jax.results.ranking import rank
from rankckpt_jax.results.row import Row
from rankckpt_jax.results.summary import summarize

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if path is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """The path of a page with 41 checkpoints and 7 measures."""
    measures = [f"measure{i}" for i in range(7)]
    rows = [
        Row(
            f"net{i:02}",
            architecture="resnet_v1_50" if i % 2 else "inception_v3",
            group="group_ii" if i < 20 else "group_iii",
            scores={m: float((i * (j + 3)) % 41) for j, m in enumerate(measures)},
            accuracy=0.5 + i / 100,
            curve=tuple((s, 0.4 + i / 100 + s / 1e5) for s in range(0, 1001, 100)),
            extract_seconds=3.0,
            finetune_seconds=300.0,
        )
        for i in range(41)
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.to_html(summarize(rank("simulated", measures, rows))))
    return path


def test_page_sorts_filters_and_shows_hints_without_requests(browser, big):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    messages, requests = [], []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(big.as_uri())

    def names():
        shown = "table.ranking tbody tr:not([hidden]) .name"
        cells = tab.locator(shown).all()
        return [cell.get_attribute("data-value") for cell in cells]

    assert len(names()) == 41
    heading = tab.locator("table.ranking thead button", has_text="Accuracy")
    heading.click()
    assert names()[0] == "net40"
    # A key press sorts in the other direction.
    heading.press("Enter")
    assert names()[0] == "net00"
    tab.locator("[data-filter]").fill("resnet")
    assert names() == [f"net{i:02}" for i in range(1, 41, 2)]
    tab.locator("[data-filter-group]").select_option("group_iii")
    assert names() == [f"net{i:02}" for i in range(21, 41, 2)]
    assert "10" in tab.locator("[data-filter-count]").inner_text()
    point = tab.locator("figure svg [data-hint]").first
    point.hover()
    hint = tab.locator("#hint").inner_text()
    assert hint and hint == point.get_attribute("data-hint")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [big.as_uri()]
    context.close()


def test_arrow_keys_select_the_points_of_a_plot(browser, big):
    tab = browser.new_page()
    tab.goto(big.as_uri())
    tab.locator("figure svg").first.focus()
    hint, names = tab.locator("#hint"), []
    for _ in range(41):
        tab.keyboard.press("ArrowRight")
        names.append(hint.inner_text().splitlines()[0])
    # Each checkpoint is selected once, then the first one again.
    assert sorted(names) == [f"net{i:02}" for i in range(41)]
    tab.keyboard.press("ArrowRight")
    assert hint.inner_text().splitlines()[0] == names[0]
    tab.keyboard.press("ArrowLeft")
    assert hint.inner_text().splitlines()[0] == names[-1]
    tab.keyboard.press("Escape")
    assert hint.is_hidden()
    tab.close()


def test_page_is_small(browser, big):
    tab = browser.new_page()
    tab.goto(big.as_uri())
    # A larger page takes more than a second to load.
    assert big.stat().st_size < 1.5e6
    assert tab.evaluate("document.querySelectorAll('*').length") < 12_000
    tab.close()


def test_print_unfolds_details_and_hides_controls(browser, big):
    tab = browser.new_page()
    tab.goto(big.as_uri())
    folded = tab.locator("details:not([open])")
    assert folded.count() > 0
    assert tab.pdf().startswith(b"%PDF")
    assert folded.count() == 0
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.locator(".filter").is_hidden()
    background = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(background) == "rgb(255, 255, 255)"
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(browser, big, scheme):
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme
    )
    tab = context.new_page()
    tab.goto(big.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    background, ink = (
        tab.evaluate(f"getComputedStyle(document.body).{key}")
        for key in ("backgroundColor", "color")
    )
    dark = sum(map(int, background[4:-1].split(",")[:3])) < 300
    assert dark == (scheme == "dark") and background != ink
    context.close()


@pytest.fixture
def outside():
    """The address of a server, and the list of paths requested from it."""
    requested = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requested
        server.shutdown()
        thread.join()


def test_policy_blocks_injected_markup(browser, hostile_page, outside, tmp_path):
    """Markup that escaping would let through is blocked by the policy."""
    address, requested = outside
    injected = (
        "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
        "<style>h1 { color: rgb(1, 2, 3) }</style><p style='color: rgb(1, 2, 3)'>x</p>"
        f"<link rel=stylesheet href={address}/css><iframe src={address}/frame></iframe>"
        f"<script src={address}/script></script><img src={address}/image>"
    )
    path = tmp_path / "report.html"
    path.write_text(hostile_page.replace("</main>", f"{injected}</main>"))
    context = browser.new_context()
    tab = context.new_page()
    dialogs = []
    tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.goto(path.as_uri())
    assert tab.evaluate("window.ran === undefined")
    assert dialogs == []
    for mark in "h1", "p[style]":
        color = tab.evaluate(
            f"getComputedStyle(document.querySelector('{mark}')).color"
        )
        assert color != "rgb(1, 2, 3)"
    assert requested == []
    # The page's own script has run.
    assert tab.evaluate("document.querySelectorAll('svg title').length") == 0
    context.close()


def test_drawings_and_shades_are_visible(browser, big):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(big.as_uri())
    places = tab.evaluate(
        "[...document.querySelectorAll('.strip .score, .strip .measured')].map("
        "mark => mark.getBoundingClientRect().left)"
    )
    assert len({*places}) > 40
    shades = tab.evaluate(
        "[...document.querySelectorAll('.ranks td')].map("
        "td => getComputedStyle(td).backgroundColor)"
    )
    assert len({*shades}) > 10
    strokes = tab.evaluate(
        "[...document.querySelectorAll('figure :is(.dot, .line), .strip .grid')].map("
        "mark => getComputedStyle(mark).stroke)"
    )
    assert strokes and all(stroke.startswith(("rgb", "color")) for stroke in strokes)
    context.close()


@pytest.fixture(scope="module")
def huge(tmp_path_factory, large):
    """The path of a page with 40 checkpoints with long names and 23 measures."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.to_html(large))
    return path


_OUTSIDE = """() => {
  // The cells that are cut off: not inside the page, nor in a scroller inside it.
  const width = document.documentElement.clientWidth;
  const inside = (box) => box.left >= -1 && box.right <= width + 1;
  const cut = [];
  for (const cell of document.querySelectorAll("th, td")) {
    if (!cell.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(cell);
    const boxes = [cell.getBoundingClientRect(), ...range.getClientRects()];
    const scroller = cell.closest(".scroll");
    const scrolls = scroller && getComputedStyle(scroller).overflowX === "auto";
    if (scrolls ? !inside(scroller.getBoundingClientRect()) : !boxes.every(inside))
      cut.push(cell.textContent.trim());
  }
  return cut;
}"""


def test_phone_shows_every_cell_and_the_numbers_beside_the_names(browser, huge):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    tab = context.new_page()
    tab.goto(huge.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate(_OUTSIDE) == []
    places = tab.evaluate(
        """() => [...document.querySelectorAll(".ranking tbody tr")].map(row => {
          const box = (s) => row.querySelector(s).getBoundingClientRect();
          const [name, number] = [box(".name"), box(".figure")];
          return [name.right - number.left, number.right, number.top - name.top];
        })"""
    )
    assert len(places) == 40
    for overlap, right, lower in places:
        assert overlap <= 0 and right <= 390 and abs(lower) < 10
    # A sentence above each table that scrolls says so.
    scrollers = tab.locator(".scroll.wide")
    assert scrollers.count() >= 2
    assert tab.locator(".more:not([hidden])").count() == scrollers.count()
    context.close()


def test_paper_shows_every_cell(browser, huge):
    # The width of A4 without margins of 12 mm, at 96 pixels an inch.
    context = browser.new_context(viewport={"width": 703, "height": 1000})
    tab = context.new_page()
    tab.goto(huge.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.emulate_media(media="print")
    assert tab.evaluate(_OUTSIDE) == []
    # Nothing hides a part of a text.
    clipped = """[...document.querySelectorAll("main *, header *")].filter(
      e => getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth
    ).map(e => e.className)"""
    assert tab.evaluate(clipped) == []
    visible = (
        "[...document.querySelectorAll('.scores')].filter(e => e.checkVisibility())"
    )
    shown = tab.evaluate(f"{visible}.map(e => e.tHead.textContent).join(' ')")
    assert all(f"some_measure_{i}" in shown for i in range(23))
    context.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_labels_of_plots_cover_no_point(browser, huge, width):
    context = browser.new_context(viewport={"width": width, "height": 844})
    tab = context.new_page()
    tab.goto(huge.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    covered, num_labels = tab.evaluate(
        """() => {
          const covered = [];
          let count = 0;
          for (const plot of document.querySelectorAll("figure svg")) {
            const boxes = (s) =>
              [...plot.querySelectorAll(s)].map(e => [e, e.getBoundingClientRect()]);
            const [dots, labels] = [boxes(".dot"), boxes(".label")];
            count += labels.length;
            for (const [label, a] of labels) {
              const others = labels.filter(([other]) => other !== label);
              for (const [other, b] of [...dots, ...others]) {
                // The boxes of texts include an empty line gap of some 2 pixels.
                const apart = a.right <= b.left || b.right <= a.left
                  || a.bottom - 2 <= b.top || b.bottom <= a.top + 2;
                if (!apart) covered.push(label.textContent);
              }
            }
          }
          return [covered, count];
        }"""
    )
    # At least two labels in each of the 23 plots.
    assert covered == [] and num_labels >= 46
    context.close()


def test_columns_can_be_chosen(browser, huge):
    tab = browser.new_page()
    tab.goto(huge.as_uri())
    tab.locator(".chooser summary").click()
    heads = tab.locator("table.scores[data-sortable] thead th")
    visible = "heads => heads.filter(h => h.checkVisibility()).length"
    assert heads.evaluate_all(visible) == 24
    tab.locator("[data-check=none]").click()
    assert heads.evaluate_all(visible) == 1
    tab.get_by_label("some_measure_20", exact=True).check()
    assert heads.evaluate_all(visible) == 2
    cells = tab.locator("table.scores[data-sortable] tbody tr").first.locator("td")
    assert cells.evaluate_all(visible) == 1
    tab.close()


def test_csv_can_be_downloaded_without_javascript(browser, huge):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(huge.as_uri())
    with tab.expect_download() as started:
        tab.get_by_text("Download CSV").click()
    assert started.value.suggested_filename == "simulated-ranking.csv"
    lines = pathlib.Path(started.value.path()).read_text().splitlines()
    assert len(lines) == 41 and lines[0].startswith("rank,checkpoint,")
    context.close()


def test_command_can_be_copied(browser, tmp_path):
    summary = summarize(rank("t", ["nleep"], [Row("a", scores={"nleep": 1.0})]))
    command = "rankckpt photos 'my pool' --finetune=2"
    conclusion = dataclasses.replace(summary.conclusion, command=command)
    path = tmp_path / "report.html"
    path.write_text(page.to_html(dataclasses.replace(summary, conclusion=conclusion)))
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.goto(path.as_uri())
    tab.get_by_role("button", name="Copy").click()
    assert tab.get_by_role("button", name="Copied").is_visible()
    assert tab.evaluate("navigator.clipboard.readText()") == command
    context.close()


def test_headings_explain_themselves_to_the_keyboard(browser, huge):
    tab = browser.new_page()
    tab.goto(huge.as_uri())
    heading = tab.locator(".evaluation thead button", has_text="Kendall").first
    tab.locator(".evaluation thead button").first.focus()
    hint = tab.locator("#hint")
    for _ in range(20):
        tab.keyboard.press("Tab")
        if heading.evaluate("e => e === document.activeElement"):
            break
    assert "share of pairs in the right order" in hint.inner_text()
    tab.keyboard.press("Tab")
    assert "share of pairs" not in hint.inner_text()
    tab.close()
