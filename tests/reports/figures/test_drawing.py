from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure

from reports.figures import drawing


def figure(text="x"):
    with mpl.rc_context(drawing.STYLE):
        out = Figure()
        ax = out.add_subplot()
        ax.plot([1, 2], [3, 4], "o-")
        ax.set_title(text)
    return out


def test_files_repeat_to_the_byte(tmp_path):
    for folder in ("a", "b"):
        drawing.save(figure(), tmp_path / folder / "x")
    for kind in ("png", "svg"):
        a, b = ((tmp_path / folder / f"x.{kind}").read_bytes() for folder in ("a", "b"))
        assert a == b


def test_label_with_dollar_signs_or_foreign_script_is_drawn_as_it_is(tmp_path):
    drawing.save(figure(r"$\oops $ 鳥 <script>"), tmp_path / "x")
    svg = (tmp_path / "x.svg").read_text()
    assert "<svg" in svg and "<script" not in svg


def test_drawing_leaves_no_global_state(tmp_path):
    before = dict(mpl.rcParams)
    drawing.save(figure(), tmp_path / "x")
    assert dict(mpl.rcParams) == before
