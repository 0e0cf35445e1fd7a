"""Every .tex table of a report: well-formed by rule, and compiled where there is a LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest

from reports import write_report

LATEX = next(filter(None, map(shutil.which, ("tectonic", "pdflatex"))), None)
EVIL = r"[a_b & 50 % of #1 {x} ~^\$ <b> [2] é"
DOCUMENT = r"""\documentclass[landscape]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{textcomp,booktabs}
\begin{document}
TABLES
\end{document}
"""
SPEC = r"\\begin\{tabular\}\{(?:l|p\{0\.2\\textwidth\})(r*)\}"
# What a table may hold of LaTeX: its frame, and the characters that `to_latex` writes for others.
KNOWN = (
    r"\\(?:begin|end)\{(?:table\*?|tabular)\}|\\footnotesize|\\setlength\{\\tabcolsep\}\{4pt\}|\\raggedright"
    r"|\\allowbreak\{\}|\\(?:top|mid|bottom)rule|\\centering|\\caption|\\\\"
    r"|\\text(?:backslash|asciitilde|asciicircum|less|greater)\{\}|\$(?:\\cdot|\\to|-)\$|\{\[\}|\\[&%$#_{}]"
)


@pytest.fixture(scope="module")
def tables(write_run, tmp_path_factory):
    """Return the .tex tables by name: those of an ablation with a hostile cell, and of a search."""
    path = tmp_path_factory.mktemp("latex")
    corners = [
        ({"model.name": m, "loss.name": loss}, {0: v, 1: v + 0.01, 2: v - 0.02})
        for m, loss, v in (("s", "ce", 0.1), ("s", EVIL, 0.2), ("b", "ce", 0.3), ("b", EVIL, 0.5))
    ]
    scored = {"status": "completed", "metrics": {"val/f1_macro": 0.4}, "f1_per_species": {EVIL: 0.5}}
    corners[0][1][3] = scored
    factors = {"model.name": ["s", "b"], "loss.name": ["ce", EVIL]}
    gates = [{"metric": "val/f1_macro", "target": 0.2, "stretch": None}]
    rng = np.random.default_rng(0)
    rates = [
        ({"optim.lr": float(lr), "model.dropout": float(p)}, {0: float(lr)})
        for lr, p in rng.uniform(size=(12, 2))
    ]
    unit = {"low": 0.0, "high": 1.0}
    space = {"optim.lr": unit, "model.dropout": unit}
    runs = [
        write_run(path / "corners", corners, name="evil_1", factors=factors, gates=gates),
        write_run(path / "rates", rates, name="rates", kind="search", space=space),
    ]
    write_report(runs, path / "out")
    return {file.stem: file.read_text() for file in sorted((path / "out" / "tables").glob("*.tex"))}


def test_every_kind_of_table_is_there(tables):
    kinds = {name.split("-")[0] for name in tables}
    assert kinds >= {"cells", "contrasts", "gates", "importance", "progression", "resources",
                     "species", "trials"}  # fmt: skip


def test_what_is_special_is_escaped(tables):
    for name, text in tables.items():
        captions_and_spec = re.sub(r"\\caption\{(.*)\}$", r"\1", text, flags=re.MULTILINE)
        captions_and_spec = re.sub(SPEC, "", captions_and_spec)
        rest = re.sub(KNOWN, "", captions_and_spec).replace(" & ", "")
        assert not set(rest) & set("\\&%$#_{}~^<>["), f"{name}: {rest}"


def test_every_row_has_as_many_columns_as_the_head_says(tables):
    for name, text in tables.items():
        (spec,) = re.findall(SPEC, text)
        rows = [line for line in text.splitlines() if line.endswith(r" \\")]
        n_columns = {len(re.split(r"(?<!\\)&", row)) for row in rows}
        assert n_columns == {1 + len(spec)} and len(rows) >= 2, name


def test_a_table_for_a_paper_has_seven_columns_at_most(tables):
    papers = [text for name, text in tables.items() if name.startswith("paper-")]
    assert len(papers) == 2 and all(len(re.search(SPEC, text).group(1)) < 7 for text in papers)


IN_TWO_COLUMNS = r"""\documentclass[twocolumn]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{textcomp,booktabs}
\begin{document}
TABLES
\end{document}
"""


@pytest.mark.skipif(LATEX is None, reason="no LaTeX here: tectonic or pdflatex on the PATH")
def test_a_table_for_a_paper_fits_a_page_of_two_columns(tables, tmp_path):
    papers = [text for name, text in tables.items() if name.startswith("paper-")]
    done = compiled(IN_TWO_COLUMNS.replace("TABLES", "\n".join(papers)), tmp_path)
    log = done.stdout + "".join(file.read_text(errors="replace") for file in tmp_path.glob("*.log"))
    assert done.returncode == 0 and "Overfull" not in log, log[-2000:]


def compiled(document, folder):
    (folder / "all.tex").write_text(document)
    options = [] if LATEX.endswith("tectonic") else ["-interaction=nonstopmode", "-halt-on-error"]
    return subprocess.run(
        [LATEX, *options, "all.tex"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.skipif(LATEX is None, reason="no LaTeX here: tectonic or pdflatex on the PATH")
def test_every_table_compiles(tables, tmp_path):
    wide = [rf"{{\tiny {text}}}\clearpage" for text in tables.values()]
    done = compiled(DOCUMENT.replace("TABLES", "\n".join(wide)), tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 0
