from __future__ import annotations

import matplotlib as mpl
import pytest

from reports.figures import drawing


def test_lines_differ_in_dash_as_well_as_in_colour():
    styles = [drawing.line_style(i) for i in range(32)]
    assert len(set(styles)) == 32
    assert all(styles[i][1] != styles[i + 1][1] for i in range(31))


def test_files_repeat_to_the_byte(tmp_path):
    def draw(folder):
        figure = drawing.figure(lambda ax: ax.plot([1, 2], [3, 4], "o-"))
        drawing.save(figure, tmp_path / folder / "x")
        return [(tmp_path / folder / f"x.{kind}").read_bytes() for kind in ("png", "svg")]

    assert draw("a") == draw("b")


def test_label_with_dollar_signs_or_foreign_script_is_drawn_as_it_is(tmp_path):
    svg = drawing.save(drawing.figure(lambda ax: ax.set_title(r"$\oops $ 鳥 <script>")), tmp_path / "x")
    assert svg.startswith("<svg") and "<script" not in svg


def test_drawing_leaves_no_global_state(tmp_path):
    before = dict(mpl.rcParams)
    drawing.save(drawing.figure(lambda ax: ax.plot([1, 2])), tmp_path / "x")
    assert dict(mpl.rcParams) == before


def test_colours_of_the_page_come_from_its_style(tmp_path):
    svg = drawing.save(drawing.figure(lambda ax: ax.plot([1, 2])), tmp_path / "x")
    assert "var(--ink)" in svg and drawing.INK not in svg
    assert drawing.INK in (tmp_path / "x.svg").read_text(), "the file on disk stands alone"


def test_panel_keeps_its_height_however_long_the_legend(tmp_path):
    def draw(n):
        figure = drawing.figure(
            lambda ax: [ax.plot([1, 2], label="a long name of a cell " * 2) for _ in range(n)]
        )
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().height

    assert draw(12) == pytest.approx(draw(2), rel=0.15)


def test_a_long_label_breaks_where_its_value_begins():
    assert (
        drawing.wrapped("small · class_balance=logit adjustment") == "small\nclass_balance=\nlogit adjustment"
    )
    assert drawing.wrapped("gamma=2") == "gamma=2"
    assert drawing.wrapped("x" * 40) == "x" * 27 + "…"
