"""report.html in headless Chromium, where there is one; and its script in Node."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from reports import write_report
from tests.browser import CHROMIUM

NODE = shutil.which("node")
EVIL = "<script>alert(1)</script>"
CELLS = [({"loss.name": name}, {0: value, 1: value + 0.01}) for name, value in
         (("ce", 0.2), (EVIL, 0.1), ("focal", 0.3))]  # fmt: skip

# Put into the page: faults are collected and sent to the page around it, with what the page holds.
PROBE = """<script>
const faults = [];
console.error = (...words) => faults.push(words.join(" "));
alert = text => faults.push(`alert ${text}`);
addEventListener("error", event => faults.push(event.message));
document.addEventListener("securitypolicyviolation", event => faults.push(`blocked ${event.blockedURI}`));
addEventListener("unhandledrejection", event => faults.push(`${event.reason}`));
const pause = ms => new Promise(done => setTimeout(done, ms));
const faded = root => [...root.querySelectorAll(".chart svg [opacity]")]
  .filter(mark => mark.getAttribute("opacity") === "0.1").length;
addEventListener("load", async () => {
  await pause(500);
  const study = document.querySelector("section");
  const bottom = Math.max(...["h2", ".answer", ".chart svg", ".basis"].map(
    what => study.querySelector(what).getBoundingClientRect().bottom));
  document.querySelector("nav.tools a[href$=cells]").click();
  await pause(500);
  const n_drawn = document.querySelectorAll(".chart svg").length;
  const n_faded = [faded(document)];
  document.querySelector("tr[data-cell]").click();
  await pause(300);
  n_faded.push(faded(document));
  const hasText = each => each.firstChild?.nodeType === 3 && each.getClientRects().length;
  const small = [...document.querySelectorAll("main *")].filter(
    each => hasText(each) && parseFloat(getComputedStyle(each).fontSize) < 12).map(each => each.tagName);
  const button = [...document.querySelectorAll("th button")].find(b => b.textContent === "val/f1_macro");
  button.click();
  const column = button.parentNode.cellIndex;
  const rows = [...button.closest("table").tBodies[0].rows];
  parent.postMessage({
    faults, bottom, n_drawn, n_faded, small, width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    n_requests: performance.getEntriesByType("resource").length,
    values: rows.map(row => row.cells[column].textContent),
  }, "*");
});
</script>"""
# axe-core's verdict on a page with all of its parts open.
AXE = """<script>
addEventListener("load", async () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
  await new Promise(done => setTimeout(done, 2000));
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  parent.postMessage(violations.map(v => [v.impact, v.id, v.nodes.length, v.nodes[0].html]), "*");
});
</script>"""
# A frame is as narrow as a phone, which a window may not be.
AROUND = """<body style="margin: 0"><pre id="seen"></pre>
<script>
onmessage = event => { document.getElementById("seen").textContent = JSON.stringify(event.data); };
</script>
<iframe src="page.html" style="border: 0; width: WIDTHpx; height: HEIGHTpx"></iframe></body>"""


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: chromium, google-chrome or chrome on the PATH"
)


def browse(folder, *given):
    """Return what headless Chromium prints; `folder` is where its profile goes."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--window-size=1280,1600",
    ]  # fmt: skip
    return subprocess.run([*command, *given], check=True, capture_output=True, text=True, timeout=120).stdout


def seen_by(dumped):
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dumped, re.DOTALL).group(1)))


def in_scheme(page, scheme):
    return page.replace("(prefers-color-scheme: dark)", "all" if scheme == "dark" else "not all")


@pytest.fixture
def page(make_run, tmp_path):
    scored = {
        "status": "completed",
        "metrics": {"val/f1_macro": 0.25},
        "f1_per_species": {EVIL: 0.5, "owl": 0.1},
    }
    run = make_run([*CELLS, ({"loss.name": "species"}, {0: scored}), ({"loss.name": "lost"}, {0: "failed"})])
    write_report([run], tmp_path / "out")
    return (tmp_path / "out" / "report.html").read_text()


def test_a_species_that_is_a_script_stays_text(page):
    assert EVIL not in page and html.escape(EVIL) in page


def test_the_page_forbids_requests_to_itself(page):
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    own = re.sub(r'<script id="vega">.*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", own)


@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(245, 246, 247)"), ("dark", "rgb(19, 22, 24)")])
def test_the_page_in_a_browser(page, tmp_path, width, height, scheme, ground):
    shown = in_scheme(page, scheme).replace("</head>", f"{PROBE}</head>", 1)
    (tmp_path / "page.html").write_text(shown)
    (tmp_path / "around.html").write_text(AROUND.replace("WIDTH", str(width)).replace("HEIGHT", str(height)))
    spectrogram = tmp_path / f"{width}-{scheme}.png"
    around = (tmp_path / "around.html").as_uri()
    browse(tmp_path, f"--screenshot={spectrogram}", around)
    seen = seen_by(browse(tmp_path, "--dump-dom", around))
    assert seen["faults"] == [] and seen["n_requests"] == 0
    assert seen["width"] == width and seen["overflow"] <= 0
    assert seen["ground"] == ground
    assert seen["bottom"] <= height, "question, answer, figure and what they rest on: the first screen"
    assert seen["n_drawn"] == 2, "the first figure, and that of the part that was opened"
    before, after = seen["n_faded"]
    assert before == 0 and after > 0, "a click on a cell marks it in every figure"
    assert seen["small"] == [], "nothing is smaller than 12 pixels"
    assert seen["values"] == ["0.105", "0.205", "0.250", "0.305", "–"]
    assert spectrogram.stat().st_size > 0


def a_search(make_run):
    cells = [({"optim.lr": 10.0**-n, "loss.name": "ce"}, {0: n / 10}) for n in range(1, 8)]
    return make_run([*cells, ({"optim.lr": 0.5, "loss.name": "focal"}, {0: "pruned"})], kind="search")


def a_null_study(make_run):
    noise = [{n: 0.2 + 0.01 * ((n * k) % 5) for n in range(5)} for k in (1, 2, 3, 4)]
    cells = [{"model.name": a, "loss.name": b} for a in ("cnn", "ast") for b in ("ce", "focal")]
    factors = {"model.name": ["cnn", "ast"], "loss.name": ["ce", "focal"]}
    return make_run(list(zip(cells, noise, strict=True)), factors=factors)


def an_ablation_of_twenty_cells(make_run):
    values = [{n: 0.2 + 0.02 * k + 0.01 * ((n * k) % 3) for n in range(3)} for k in range(20)]
    gammas = [k / 4 for k in range(20)]
    cells = [({"loss.gamma": gamma}, value) for gamma, value in zip(gammas, values, strict=True)]
    return make_run(cells, factors={"loss.gamma": gammas})


@needs_chromium
@pytest.mark.skipif(
    "BIRDTUNE_AXE" not in os.environ, reason="BIRDTUNE_AXE names no axe.min.js of axe-core, as .ci/run does"
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("study", [a_search, a_null_study, an_ablation_of_twenty_cells])
def test_axe_finds_no_serious_fault(make_run, tmp_path, study, scheme):
    write_report([study(make_run)], tmp_path / "out")
    shown = in_scheme((tmp_path / "out" / "report.html").read_text(), scheme)
    script = Path(os.environ["BIRDTUNE_AXE"]).read_text()
    (tmp_path / "page.html").write_text(shown.replace("</head>", f"<script>{script}</script>{AXE}</head>", 1))
    (tmp_path / "around.html").write_text(AROUND.replace("WIDTH", "1280").replace("HEIGHT", "800"))
    found = seen_by(browse(tmp_path, "--dump-dom", (tmp_path / "around.html").as_uri()))
    assert [each for each in found if each[0] in ("serious", "critical")] == []


# What the script needs of a page, for tables that are lists of rows of texts.
DOM = """
const made = () => {
  const attributes = {};
  const element = { childNodes: [], on: {}, append() {}, type: "",
    addEventListener(kind, does) { element.on[kind] = does; },
    getAttribute: name => attributes[name] ?? null,
    setAttribute: (name, value) => { attributes[name] = value; },
    removeAttribute: name => { delete attributes[name]; } };
  return element;
};
const buttons = [];
const rows = INPUT.map(texts => ({ cells: texts.map(text => ({ textContent: text })) }));
const body = { rows, append(...sorted) { body.rows = sorted; } };
const heads = INPUT[0].map(made);
globalThis.document = {
  createElement: () => { const button = made(); buttons.push(button); return button; },
  querySelectorAll: () => [{ tHead: { rows: [{ cells: heads }] }, tBodies: [body] }],
};
"""


def sorted_by_script(page, column, *, clicks):
    """Return the texts of a column, and what its head says, after so many clicks on it."""
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL).group(1)
    texts = [[text] for text in column]
    code = DOM.replace("INPUT", json.dumps(texts)) + script
    code += f"for (let i = 0; i < {clicks}; i++) buttons[0].on.click();"
    code += "console.log(JSON.stringify([body.rows.map(row => row.cells[0].textContent), "
    code += "heads[0].getAttribute('aria-sort')]));"
    done = subprocess.run([NODE, "-e", code], check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None, reason="no Node here, which runs the page's script")
@pytest.mark.parametrize(
    ("column", "rising"),
    [
        (["10", "9", "–", "1,000"], ["9", "10", "1,000", "–"]),
        (["+0.0100", "−0.2000", "none", "−0.0300"], ["−0.2000", "−0.0300", "+0.0100", "none"]),
        (["0.020", "< 0.001", "1e-05"], ["1e-05", "< 0.001", "0.020"]),
        (["39.35 %", "6.44 %", "none: one repeat"], ["6.44 %", "39.35 %", "none: one repeat"]),
        (["0.2 to 0.3", "0.1 to 0.4"], ["0.1 to 0.4", "0.2 to 0.3"]),
        (["#10", "#9 (best)", ""], ["#9 (best)", "#10", ""]),
        (["3e10ab-r0", "12cd-r0", "1ab-r0"], ["1ab-r0", "3e10ab-r0", "12cd-r0"]),
    ],
)
def test_a_click_sorts_numbers_as_numbers_with_what_is_absent_last(page, column, rising):
    assert sorted_by_script(page, column, clicks=1) == [rising, "ascending"]
    absent = [text for text in rising if text in ("–", "none", "") or text.startswith("none:")]
    there = [text for text in rising if text not in absent]
    assert sorted_by_script(page, column, clicks=2) == [there[::-1] + absent, "descending"]
