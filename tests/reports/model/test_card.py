import json

import pytest

from reports.model.card import differences, write_card
from reports.model.card import test_table as table_of_test
from reports.model.figures import reliability_figure, scores_figure, species_figure, write_figures

CONFIG = {
    "data": {
        "window_s": 4.0, "sample_rate": 22050, "highpass_hz": 500.0, "windows_per_recording": 1,
    },
    "model": {"name": "audio_cnn"}, "loss": {"name": "focal"}, "features": {"name": "mfcc"},
    "training": {"train_on": "train", "epochs": 50, "monitor": "val/f1_macro"},
}  # fmt: skip
METRICS = ("accuracy", "top5", "f1_macro", "f1_weighted", "map", "auroc", "f1_rare", "f1_medium", "f1_common",
           "loss", "ece")  # fmt: skip


def write(folder, name, content):
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def model(tmp_path):
    member = {"file": "member-0.safetensors", "seed": 3, "epochs": 12, "trial_id": "abc-r3"}
    provenance = {
        "versions": {"torch": "2.13"}, "git_commit": None, "device": "cpu", "precision": "fp32",
        "data_id": "d", "split_id": "s",
    }  # fmt: skip
    write(tmp_path, "model", {
        "config": CONFIG, "species": ["owl", "a_wren|x"], "temperature": 1.0, "members": [member],
        "n_params": 343801, "provenance": provenance,
    })  # fmt: skip
    return tmp_path


def evaluation(n_species=2, n_bins=15):
    value = {"value": 0.5, "low": 0.25, "high": 0.75}
    metrics = {f"test/{name}": dict(value) for name in METRICS}
    metrics["test/f1_rare"] = {"value": None, "low": None, "high": None}
    bins = [
        {"low": b / n_bins, "high": (b + 1) / n_bins, "n": b % 3, "confidence": (b + 0.5) / n_bins,
         "accuracy": b / n_bins}
        for b in range(n_bins)
    ]  # fmt: skip
    strata = ("rare", "medium", "common")
    names = ["owl", "a_wren|x", *(f"Genusnamus longepithetus {i:03d}" for i in range(2, n_species))]
    species = [
        {"species": s, "stratum": strata[i % 3], "n_train": i, "n_test": i % 5, "f1": 0.5 if i % 5 else None}
        for i, s in enumerate(names)
    ]
    counts = {"possibly seen": 6, "not seen": 4, "unknown": 0}
    seen = {
        "backbone": "birdnet", "trained_on": "xeno-canto", "scored": "recordings",
        "counts": {split: counts for split in ("train", "val", "test")},
        "rows": [
            {"status": status, "n": n, "n_species": 2, "n_groups": n,
             "rows": [{"name": name, "metrics": metrics} for name in ("ensemble, calibrated", "zero-shot")]}
            for status, n in (("possibly seen", 6), ("not seen", 4))
        ],
    }  # fmt: skip
    rows = ("seed 3", "ensemble", "ensemble, calibrated", "zero-shot")
    return {
        "schema": 2, "rows": [{"name": name, "metrics": metrics} for name in rows],
        "difference": metrics, "over_baseline": {"zero-shot": metrics},
        "seen": seen, "species": species, "reliability": {"before": bins, "after": bins},
        "temperature": 1.5, "scored": "recordings", "n": 10, "n_species": 2, "n_groups": 4,
        "bootstrap": {"n_resamples": 1000}, "notes": ["few groups"],
    }  # fmt: skip


def test_the_card_of_a_single_training_names_what_is_not_known(model):
    text = write_card(model).read_text()
    for words in (
        "which of 2 species", "windows of 4 s at 22050 Hz, high-pass at 500 Hz", "343,801 parameters",
        "Not recorded: training started from a config", "| member-0.safetensors | 3 | 12 | abc-r3 |",
        "The test split has not been opened", "Not calibrated", "a_wren\\|x",
    ):  # fmt: skip
        assert words in text, words
    write(model, "record", {"seed": 3, "metrics": {"val/accuracy": 0.625, "val/loss": 1.25}})
    assert "| seed 3 | 1.250 | 0.625 | – | – | – | – | – | – |" in write_card(model).read_text()


def test_the_card_of_a_model_on_embeddings_names_the_backbone_and_the_licence_of_its_weights(model):
    content = json.loads((model / "model.json").read_text())
    content["config"]["features"] = {"name": "embedding", "backbone": "birdnet", "weights_hash": "55f3"}
    content["provenance"]["backbone"] = {"source": "BirdNET V2.4", "licence": "CC BY-NC-SA 4.0"}
    assert "needs the backbone" not in write_card(model).read_text()
    write(model, "model", content)
    text = write_card(model).read_text()
    assert "It needs the backbone birdnet (BirdNET V2.4), which is not in this folder: weights 55f3." in text
    assert "Licence of these weights: CC BY-NC-SA 4.0." in text


def test_the_card_counts_openings_and_warns_of_the_second(model):
    opening = {"number": 1, "date": "2026-01-01", "command": "birdtune evaluate model"}
    write(model, "tests", {"openings": [opening]})
    assert "Opened 1 time:" in write_card(model).read_text()
    assert "the evaluation was interrupted" in write_card(model).read_text()
    write(model, "tests", {"openings": [opening, {**opening, "number": 2}]})
    write(model, "evaluation", evaluation())
    text = write_card(model).read_text()
    assert "> **Warning.** The test split was opened 2 times." in text
    assert "| seed 3 | 0.500 \\[0.250, 0.750\\] |" in text and "- few groups" in text
    write(model, "evaluation", {**evaluation(), "schema": 1})
    assert "or is of an older version" in write_card(model).read_text()


def test_the_card_gives_the_scores_of_seen_and_unseen_recordings_apart(model):
    write(model, "tests", {"openings": [{"number": 1, "date": "2026-01-01", "command": "evaluate"}]})
    tested = evaluation()
    write(model, "evaluation", tested)
    text = write_card(model).read_text()
    for words in (
        "The backbone birdnet was trained on xeno-canto. Of the test recordings: 6 possibly seen, 4 not seen",
        "| not seen (4 of 2 species, 4 groups) | zero-shot | 0.500 \\[0.250, 0.750\\] |",
        "> **Caution.** 6 of 10 test recordings may be among those that the backbone 'birdnet' was trained",
    ):
        assert words in text, words
    tested["seen"]["counts"]["test"] = {"possibly seen": 5, "not seen": 5, "unknown": 0}
    write(model, "evaluation", tested)
    assert "**Caution.**" not in write_card(model).read_text()
    write(model, "evaluation", {**tested, "seen": None})
    assert "Seen before?" not in write_card(model).read_text()


def test_absent_scores_are_dashes():
    for name, metrics in differences(evaluation()).items():
        row = table_of_test({name: metrics}).set_index("").loc[name]
        assert row["F1 rare"] == "–" and row["mAP"] == "0.500 [0.250, 0.750]"


def test_the_tables_of_the_test_have_a_row_each_and_as_many_columns_as_a_page_has_room_for(model):
    write(model, "tests", {"openings": [{"number": 1, "date": "2026-01-01", "command": "evaluate"}]})
    write(model, "evaluation", evaluation())
    lines = write_card(model).read_text().split("## Test")[1].splitlines()
    head = "|  | accuracy | F1-macro | F1 rare | mAP | log loss | ECE |"
    assert lines.count(head) == 2
    for name in ("seed 3", "ensemble", "zero-shot", "ensemble − mean of seeds", "calibrated − zero-shot"):
        assert any(line.startswith(f"| {name} | 0.500") for line in lines), name


def test_the_card_explains_the_baselines_of_the_test(model):
    write(model, "tests", {"openings": [{"number": 1, "date": "2026-01-01", "command": "evaluate"}]})
    write(model, "evaluation", evaluation())
    assert "zero-shot is what the backbone itself predicts" in write_card(model).read_text()
    write(model, "evaluation", {**evaluation(), "over_baseline": {}})
    assert "Baselines are not tuned" not in write_card(model).read_text()


def test_every_row_of_the_evaluation_and_of_each_seen_part_has_its_score_drawn():
    tested = evaluation()
    axes = scores_figure(tested).axes
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names[:4] == ["seed 3", "ensemble", "ensemble, calibrated", "zero-shot"]
    assert names[4:6] == ["possibly seen, n = 6: ensemble, calibrated", "possibly seen, n = 6: zero-shot"]
    for ax in axes:
        assert [line.get_xdata().tolist() for line in ax.lines] == [[0.25, 0.75], [0.5]] * len(names)
    assert len(scores_figure({**tested, "seen": None, "over_baseline": {}}).axes[0].get_yticks()) == 4


@pytest.mark.parametrize("n_species", [2, 12, 89, 150])
def test_every_tested_species_has_a_bar_and_no_names_overlap(n_species, tmp_path):
    species = evaluation(n_species)["species"]
    figure = species_figure(species)
    assert write_figures(evaluation(n_species), tmp_path) == ["scores", "reliability", "species"]
    figure.canvas.draw()
    names = []
    for ax in figure.axes:
        labels = [label for label in ax.get_yticklabels() if label.get_text()]
        names += [label.get_text() for label in labels]
        boxes = [label.get_window_extent() for label in labels]
        assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:], strict=False))
    assert sorted(names) == sorted(s["species"] for s in species if s["n_test"])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(legend) == {s["stratum"] for s in species if s["n_test"]}
    assert (tmp_path / "species.svg").read_text().startswith("<?xml")


def test_the_reliability_diagram_draws_the_bins_that_hold_recordings():
    tested = evaluation()
    figure = reliability_figure({**tested, "temperature": 0.514})
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width
    above, below = figure.axes
    known = [row for row in tested["reliability"]["after"] if row["n"]]
    assert above.lines[2].get_xdata().tolist() == [row["confidence"] for row in known]
    assert above.lines[2].get_ydata().tolist() == [row["accuracy"] for row in known]
    assert sum(bar.get_height() for bar in below.patches) == 2 * sum(row["n"] for row in known)
