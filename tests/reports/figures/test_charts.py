"""A chart's specification, its files, and what the page is given of it."""

from __future__ import annotations

import json
import os
import re
import threading

import pandas as pd
import pytest

from birdnet_core.errors import MachineError
from reports.figures import charts
from reports.figures.charts import PX_PER_INCH, WIDTHS, draw, fading, labels_above, row_of, rows, save
from reports.figures.colours import INK

EVIL = r"$\oops $ 鳥 </script><script>alert(1)</script>"


@pytest.fixture
def drawn():
    frame = pd.DataFrame({"cell": ["a", EVIL], "label": ["a", EVIL], "value": [1.0, float("nan")]})
    marks = rows("cells").mark_point(color=INK).encode(x="value:Q", y=row_of(), opacity=fading())
    return draw("x", EVIL, 60, marks, labels_above("cells"), cells=frame)


def test_a_specification_is_json_without_nan(drawn):
    text = json.dumps(drawn.spec, allow_nan=False)
    assert json.loads(text)["datasets"]["cells"][1]["value"] is None
    assert "width" not in drawn.spec and "config" not in drawn.spec


def test_every_file_is_written_as_wide_as_a_page_and_as_a_column(drawn, tmp_path):
    save(drawn, tmp_path / "x")
    assert {p.name for p in tmp_path.iterdir()} == {
        f"x{ending}.{kind}" for ending in WIDTHS for kind in ("svg", "pdf", "png")
    }
    for ending, inches in WIDTHS.items():
        svg = (tmp_path / f"x{ending}.svg").read_text()
        assert float(re.search(r'<svg[^>]* width="([\d.]+)"', svg).group(1)) == pytest.approx(
            inches * PX_PER_INCH, abs=1
        )
        pdf = (tmp_path / f"x{ending}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/FontFile" in pdf, "fonts are embedded"


def test_files_repeat_to_the_byte(drawn, tmp_path):
    for folder in ("a", "b"):
        save(drawn, tmp_path / folder / "x")
    for file in (p for kind in ("svg", "png") for p in (tmp_path / "a").glob(f"*.{kind}")):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_text_of_a_figure_is_text_and_no_element(drawn, tmp_path):
    save(drawn, tmp_path / "x")
    svg = (tmp_path / "x.svg").read_text()
    assert "<text" in svg and "<script" not in svg and "鳥" in svg


def test_a_specification_cannot_end_its_script_element(drawn):
    text = charts.for_page(drawn)
    assert "<" not in text
    assert json.loads(text)["datasets"]["cells"][1]["cell"] == EVIL


def test_colours_of_the_page_come_from_its_style(drawn, tmp_path):
    assert "var(--ink)" in charts.for_page(drawn) + charts.page_theme()
    assert INK not in charts.for_page(drawn)
    save(drawn, tmp_path / "x")
    assert "var(--" not in (tmp_path / "x.svg").read_text(), "the file on disk stands alone"


def test_the_script_cannot_end_its_element_and_has_an_interpreter():
    script = charts.script()
    assert "</script" not in script and "vegaEmbed" in script and "ast" in script


def full():
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("apart", [False, True])
def test_what_writing_a_file_raises_ends_the_block_of_saving(apart):
    with pytest.raises(OSError, match="No space left"), charts.Saving(apart=apart) as saving:
        saving.run(full)


def test_a_process_that_is_killed_while_it_writes_ends_the_block_of_saving():
    with pytest.raises(MachineError, match="ended from outside"), charts.Saving(apart=True) as saving:
        saving.run(os._exit, 1)


def test_files_are_written_next_to_the_process_that_reports():
    with charts.Saving(apart=True) as saving:
        process = saving.run(os.getpid)
    assert process.result() != os.getpid()
    with charts.Saving(apart=False) as saving:
        thread = saving.run(threading.get_ident)
    assert thread.result() != threading.get_ident()
