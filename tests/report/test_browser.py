"""The page in a browser: sorting, filters, hints, print, and no requests."""

import http.server
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
    heading = tab.locator("table.ranking thead button", has_text="Fine-tuned")
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


def test_bars_shades_and_plots_are_visible(browser, big):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.goto(big.as_uri())
    widths = tab.evaluate(
        "[...document.querySelectorAll('.bar i')].map(i => i.offsetWidth)"
    )
    assert len({*widths}) > 10
    shades = tab.evaluate(
        "[...document.querySelectorAll('.ranks td')].map("
        "td => getComputedStyle(td).backgroundColor)"
    )
    assert len({*shades}) > 10
    fills = tab.evaluate(
        "[...document.querySelectorAll('figure svg use')].map("
        "use => getComputedStyle(use).stroke)"
    )
    assert fills and all(fill.startswith(("rgb", "color")) for fill in fills)
    context.close()
