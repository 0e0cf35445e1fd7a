import numpy as np
import pandas as pd
import pytest

from reports.figures.data import counts_figure, species_counts, spectrograms_figure
from reports.figures.drawing import save


def recordings(n_of):
    """Seven of ten recordings of a species in train, the others in val and test by turns."""
    splits = ["train"] * 7 + ["val", "test", "val"]
    rows = [(species, splits[i % 10]) for species, n in n_of.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["species", "split"])


def long_tail(n_species):
    return {f"Genusnamus longepithetus {i:03d}": 1 + 2000 // (i + 1) ** 2 for i in range(n_species)}


def test_species_are_sorted_by_recordings_and_counted_by_split():
    counts = species_counts(recordings({"wren": 10, "robin": 20, "crane": 10}))
    assert counts.index.tolist() == ["robin", "crane", "wren"]
    assert counts.loc["robin"].to_dict() == {"train": 14, "val": 4, "test": 2}


def test_unused_recordings_are_drawn_where_there_are_any():
    rows = pd.DataFrame([("wren", "unused")] * 3, columns=["species", "split"])
    counts = species_counts(pd.concat([recordings({"robin": 10}), rows]))
    assert counts.columns.tolist() == ["train", "val", "test", "unused"]
    (ax,) = counts_figure(counts).axes
    lengths = [sum(bar.get_width() for bar in bars) for bars in zip(*ax.containers, strict=True)]
    assert lengths == [10, 3]


@pytest.mark.parametrize(("n_of", "scale"), [({"a": 40, "b": 4}, "linear"), ({"a": 400, "b": 4}, "log")])
def test_a_long_tail_gets_a_logarithmic_axis(n_of, scale):
    (ax,) = counts_figure(species_counts(recordings(n_of))).axes
    assert ax.get_xscale() == scale
    lengths = [sum(bar.get_width() for bar in bars) for bars in zip(*ax.containers, strict=True)]
    assert lengths == list(n_of.values())


@pytest.mark.parametrize("n_species", [2, 12, 89, 150])
def test_species_names_are_whole_and_do_not_overlap(n_species, tmp_path):
    figure = counts_figure(species_counts(recordings(long_tail(n_species))))
    save(figure, tmp_path / "counts")
    names = []
    for ax in figure.axes:
        labels = [label for label in ax.get_yticklabels() if label.get_text()]
        names += [label.get_text() for label in labels]
        boxes = [label.get_window_extent() for label in labels]
        assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:], strict=False))
        left = [
            other.get_tightbbox().x1
            for other in figure.axes
            if other.get_position().x1 < ax.get_position().x0
        ]
        assert min(box.x0 for box in boxes) >= max(left, default=0)
    assert len(names) == len(set(names)) == n_species
    assert (tmp_path / "counts.png").stat().st_size > 1000
    assert (tmp_path / "counts.svg").read_text().startswith("<?xml")


def test_spectrograms_stand_side_by_side_on_one_scale():
    spectrogram = np.linspace(-80, 0, 513 * 100).reshape(513, 100)
    examples = [("wren\nrare", spectrogram), ("robin\ncommon", spectrogram)]
    figure = spectrograms_figure(examples, seconds=4.0, sample_rate=22_050)
    panels = figure.axes[:2]
    assert [ax.get_title(loc="left") for ax in panels] == ["wren\nrare", "robin\ncommon"]
    for ax in panels:
        assert ax.get_images()[0].get_clim() == (-80, 0)
        assert ax.get_xlim() == (0, 4)
        assert ax.get_ylim() == (0, 11.025)
