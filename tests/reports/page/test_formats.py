from __future__ import annotations

import csv
import io

import pandas as pd

from reports.page.formats import form_of, number, signed, to_csv, to_latex, to_markdown, with_sign


def test_latex_prints_every_special_character_as_it_is():
    frame = pd.DataFrame({"cell": [r"a_b & 5% of #1 {x} ~^\ $2"], "F1": ["0.1"]})
    row = to_latex(frame, "50% off").splitlines()[7]
    assert row == (
        r"a\_b \& 5\% of \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$2 & 0.1 \\"
    )


def test_latex_is_a_booktabs_table_with_a_column_each():
    text = to_latex(pd.DataFrame({"a": ["1"], "b": ["2"], "c": ["3"]}), "x")
    assert r"\begin{tabular}{lrr}" in text
    assert [text.count(rf"\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 1, 1]


def test_markdown_cell_with_a_pipe_or_a_line_break_stays_one_cell():
    text = to_markdown(pd.DataFrame({"a": ["x|y\nz"], "b": ["<b>"]}))
    assert text.splitlines()[2] == r"| x\|y z | &lt;b&gt; |"


def test_csv_keeps_full_precision_and_leaves_absent_numbers_empty():
    rows = list(
        csv.reader(io.StringIO(to_csv(pd.DataFrame({"a": [1 / 3, float("nan")], "b": ["x,y", "z"]}))))
    )
    assert float(rows[1][0]) == 1 / 3
    assert rows[1:][0][1] == "x,y" and rows[2][0] == ""


def test_a_score_has_two_digits_of_its_uncertainty():
    nan = float("nan")
    assert form_of([0.10, nan], [0.18, nan]).format(0.12345) == "0.123"  # half-width 0.04
    assert form_of([0.1], [0.5]).format(0.12345) == "0.12"
    assert form_of([0.1], [0.102]).format(0.12345) == "0.1235"
    assert form_of([nan], [nan]).format(0.12345) == "0.123"
    assert with_sign(form_of([0.1], [0.5])).format(0.12345) == "+0.12"


def test_zero_has_a_sign_where_the_form_has_one():
    numbers = [number(value, "{:.3f}") for value in (-1e-17, -0.0004, -0.0006, 0.2)]
    assert numbers == ["0.000", "0.000", "−0.001", "0.200"]
    assert signed(-0.0004, "{:+.3f}") == "−0.000"
