"""report.html in headless Chromium, where there is one; and its script in Node."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

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
# A frame is as narrow as a phone, which a window may not be.
AROUND = """<body style="margin: 0"><pre id="seen"></pre>
<script>
onmessage = event => { document.getElementById("seen").textContent = JSON.stringify(event.data); };
</script>
<iframe src="page.html" style="border: 0; width: WIDTHpx; height: HEIGHTpx"></iframe></body>"""


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


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: chromium, google-chrome or chrome on the PATH"
)
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(245, 246, 247)"), ("dark", "rgb(19, 22, 24)")])
def test_the_page_in_a_browser(page, tmp_path, width, height, scheme, ground):
    wanted = "all" if scheme == "dark" else "not all"
    shown = page.replace("(prefers-color-scheme: dark)", wanted).replace("</head>", f"{PROBE}</head>", 1)
    (tmp_path / "page.html").write_text(shown)
    (tmp_path / "around.html").write_text(AROUND.replace("WIDTH", str(width)).replace("HEIGHT", str(height)))
    spectrogram = tmp_path / f"{width}-{scheme}.png"
    common = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--window-size=1280,1600",
    ]  # fmt: skip
    address = (tmp_path / "around.html").as_uri()
    subprocess.run(
        [*common, f"--screenshot={spectrogram}", address], check=True, capture_output=True, timeout=120
    )
    dumped = subprocess.run(
        [*common, "--dump-dom", address], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dumped, re.DOTALL).group(1)))
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
