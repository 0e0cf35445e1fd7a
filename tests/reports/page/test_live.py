"""The page of the dashboard; in headless Chromium, where there is one, also over a run folder that grows."""

import base64
import hashlib
import os
import re
import sys
import threading
import time

import pytest

from birdnet_core.records.run_folder import RunFolder
from reports.page.live import live_page
from tests.browser import CHROMIUM, Browser
from tests.journals import ABLATION, MIXED, SEARCH, begin, end, epoch, hold_the_lock, write_run
from tuning.views.dashboard import Dashboard, optuna_command

EVIL = "<script>alert(1)</script>"
QUESTION = f"Which learning rate? {EVIL}"
in_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: chromium, google-chrome or chrome on the PATH"
)


@pytest.fixture
def serve(tmp_path):
    """Serve the page of a run folder; returns its address."""
    servers = []

    def start(run: RunFolder) -> str:
        def page() -> str:
            studies = [{"question": "", **run.read_study(name)} for name in run.study_names()]
            commands = {s["name"]: optuna_command(run, s) for s in studies}
            return live_page(str(run.path), studies, {name: c for name, c in commands.items() if c})

        (tmp_path / "scratch").mkdir()
        report = [sys.executable, "-P", "-m", "reports", str(run.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        servers.append(Dashboard(run, 0, page, report, environment, tmp_path / "scratch"))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1].address

    yield start
    for server in servers:
        server.shutdown()
        server.close()


@pytest.fixture
def browse(tmp_path):
    """Open an address in a browser of a size and colour scheme."""
    browsers = []

    def start(address: str, width: int = 1280, height: int = 800, scheme: str = "light") -> Browser:
        browsers.append(Browser(tmp_path / f"profile{len(browsers)}", width, height, scheme))
        browsers[-1].open(address)
        browsers[-1].wait("document.documentElement?.dataset.live")
        return browsers[-1]

    yield start
    for browser in browsers:
        browser.close()


TEXT = "document.querySelector('main').innerText"
# The middle of a point that hovering finds: of the running trial that began first.
POINT = """(() => {
  const points = [...document.querySelectorAll(".chart svg .mark-symbol path")].filter(
    each => each.getAttribute("opacity") === "0");
  const { left, top, width, height } = points[1].getBoundingClientRect();
  return { x: left + width / 2, y: top + height / 2 };
})()"""
SMALL = """[...document.querySelectorAll("main *")].filter(each => each.firstChild?.nodeType === 3
  && each.getClientRects().length && parseFloat(getComputedStyle(each).fontSize) < 12)
  .map(each => each.outerHTML)"""


def test_the_policy_of_the_page_allows_its_own_scripts_and_server_alone():
    study = {"name": "rates", "question": QUESTION, "kind": "search", "metric": "val/loss", "epochs": 4}
    page = live_page(f"runs/{EVIL}", [study], {"rates": f"cp {EVIL}"})
    assert EVIL not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'; connect-src 'self';" in policy and "'unsafe-inline'; script-src" in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes and len(hashes) == 2
    assert "eval" not in policy and "http" not in policy


@in_browser
@pytest.mark.parametrize(
    ("width", "height", "scheme", "ground"),
    [(1280, 800, "light", "rgb(245, 246, 247)"), (390, 844, "dark", "rgb(19, 22, 24)")],
)
def test_the_page_of_a_finished_run(serve, browse, tmp_path, width, height, scheme, ground):
    failed = {**end("c-r0", "failed"), "error": f"RuntimeError: {EVIL}"}
    events = [*MIXED[:10], {"event": "audit", "trial_id": "a-r0", "epoch": 2}, begin("c-r0", 2), failed]
    run = write_run(tmp_path / "run", [{**SEARCH, "question": QUESTION, "n_trials": 3}], events)
    page = browse(serve(run), width, height, scheme)
    page.wait("document.querySelector('.chart svg path')")
    text = page.evaluate(TEXT)
    assert QUESTION in text and "Finished: 3 of 3 trials ended." in text
    assert "The sweep has finished. This page no longer updates." in text
    assert "Best val/loss: 0.4000" in text and "1 trial ended early, 1 audited" in text
    assert "1 trial failed, diverged or killed" in text and f"RuntimeError: {EVIL}" in text
    assert page.evaluate("document.querySelector('pre').textContent").startswith("cp ")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert page.evaluate(SMALL) == []
    n_requests = "performance.getEntriesByType('resource').length"
    before = page.evaluate(n_requests)
    time.sleep(3)
    assert page.evaluate(n_requests) == before == 1, "a finished sweep is fetched once"
    assert page.faults == []


@in_browser
def test_the_page_follows_a_run_that_grows(serve, browse, tmp_path):
    run = write_run(tmp_path / "run", [SEARCH], MIXED[:4])
    driver = hold_the_lock(run)
    try:
        page = browse(serve(run))
        page.wait("document.querySelector('.chart svg path')")
        assert page.evaluate("document.documentElement.dataset.live") == "true"
        page.evaluate("window.first = document.querySelector('.chart svg'); 0")
        row = "document.querySelector('.running tr[data-key=\"a-r0\"]')"
        assert page.evaluate(f"[...{row}.cells].map(cell => cell.textContent)") == [
            "#0: optim.lr=0", "3/4", "0.5000", "10",
        ]  # fmt: skip
        # By the keyboard: the row's button marks its trial in the figure, and keeps the focus.
        page.evaluate(f"{row}.querySelector('button').focus(); document.activeElement.click()")
        page.wait(f"{row}.classList.contains('marked')")
        run.append(begin("b-r0", 1), epoch("b-r0", 1, 0.95))
        page.wait("document.querySelector('.running tr[data-key=\"b-r0\"]')")
        assert page.evaluate(f"document.activeElement === {row}.querySelector('button')")
        assert page.evaluate(f"{row}.classList.contains('marked')")
        assert page.evaluate("document.querySelector('.chart svg') === first"), "the figure is kept"
        faded = "[...document.querySelectorAll('.chart svg path[opacity=\"0.1\"]')].length"
        page.wait(faded)
        hovered = page.evaluate(POINT)
        page.send("Input.dispatchMouseEvent", type="mouseMoved", **hovered)
        tip = "document.querySelector('#vg-tooltip-element.visible')"
        page.wait(f"{tip}?.innerText.includes('#0: optim.lr=0')")
        for n in (2, 3, 4):
            run.append(epoch("b-r0", n, 0.3 / n))
        page.wait("document.querySelector('.answer').innerText.includes('0.0750')")
        assert page.evaluate(f"{tip}?.innerText.includes('#0: optim.lr=0')"), "hovering goes on"
        run.append(end("b-r0", "completed"), epoch("a-r0", 4, 0.6), end("a-r0", "completed"))
        page.wait("document.querySelector('.answer').innerText.includes('0.0750')")
        page.wait("document.querySelectorAll('.running tbody tr').length === 0")
        assert page.evaluate("document.title").startswith("2/6")
        with open(run.journal_path, "ab") as journal:
            journal.write(b'{"event": "epo')  # half a line is left for later
        time.sleep(2.5)
        driver.kill()
        driver.wait()
        page.wait("document.documentElement.dataset.live === 'false'")
        line = page.evaluate("document.getElementById('driver').innerText")
        assert line.startswith("No driver runs. To continue: birdtune resume")
        assert page.faults == []
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


@in_browser
def test_the_full_report_opens_from_the_page(serve, browse, make_run, tmp_path):
    page = browse(serve(RunFolder(make_run([({"x": 1}, {0: 0.2, 1: 0.3}), ({"x": 2}, {0: 0.4, 1: 0.5})]))))
    page.evaluate("document.querySelector('header a').click()")
    page.wait("document.querySelector('.chart svg') && document.title.startsWith('birdtune report')", 120)
    assert page.faults == []


@in_browser
def test_a_run_folder_that_cannot_be_read_is_named_on_the_page(serve, browse, tmp_path):
    run = write_run(tmp_path / "run", [SEARCH, ABLATION], MIXED)
    driver = hold_the_lock(run)
    try:
        page = browse(serve(run))
        run.journal_path.write_text("not JSON\n")
        page.wait("document.getElementById('driver').innerText.includes('is not JSON')")
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
