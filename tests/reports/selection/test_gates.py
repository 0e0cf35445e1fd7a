import json

import pytest

from birdnet_core.errors import RunFolderError
from reports import load, write_report
from reports.selection.gates import verdicts

SMALL, BIG = {"model.name": "small"}, {"model.name": "big"}


def gate(metric="val/f1_macro", target=0.2, stretch=None):
    return {"metric": metric, "target": target, "stretch": stretch}


def scores(f1, loss, step=0.01):
    """Return three repeats that completed, around the given scores."""
    return {
        repeat: {
            "status": "completed",
            "metrics": {"val/f1_macro": f1 + step * (repeat - 1), "val/loss": loss + 1e-4 * (repeat - 1)},
        }
        for repeat in range(3)
    }


@pytest.fixture
def results_of(make_run):
    """Return a function that gives the decision on a run of the given cells, and its gates by criterion."""

    def verdict_of(cells, *gates, **changes):
        (verdict,) = verdicts(load([make_run(cells, gates=list(gates), **changes)]))
        return verdict["decision"], {row["criterion"]: row for row in verdict["gates"]}

    return verdict_of


def test_the_best_cells_interval_over_repeats_is_what_counts(results_of):
    cells = [(SMALL, scores(0.1, 2.0)), (BIG, scores(0.3, 1.5))]
    decision, rows = results_of(cells, gate(stretch=0.31), gate("val/loss", 1.6, stretch=1.51))
    assert decision == "GO"
    f1, loss = rows["val/f1_macro >= 0.2"], rows["val/loss <= 1.6"]
    assert (f1["status"], f1["n"], f1["is_stretch_reached"]) == ("PASS", 3, False)
    assert f1["value"] == pytest.approx(0.3)
    assert f1["low"] == pytest.approx(0.3 - 4.30265 * 0.01 / 3**0.5, abs=1e-6)  # t(2) = 4.30265
    assert (loss["status"], loss["is_stretch_reached"]) == ("PASS", True)
    assert loss["value"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("target", "status", "decision"),
    [(0.27, "PASS", "GO"), (0.28, "OPEN", "INVESTIGATE"), (0.3, "OPEN", "INVESTIGATE"),
     (0.32, "OPEN", "INVESTIGATE"), (0.33, "FAIL", "NO-GO")],
)  # fmt: skip
def test_a_gate_passes_or_fails_by_the_whole_interval_and_is_open_between(
    results_of, target, status, decision
):
    decided, rows = results_of([(SMALL, scores(0.3, 1.5))], gate(target=target))
    row = rows[f"val/f1_macro >= {target:g}"]
    assert (row["low"], row["high"]) == pytest.approx((0.2752, 0.3248), abs=1e-4)
    assert (decided, row["status"]) == (decision, status)
    assert row["note"] == ("the interval holds the target" if status == "OPEN" else "")


@pytest.mark.parametrize(("target", "status"), [(1.6, "PASS"), (1.5, "OPEN"), (1.4, "FAIL")])
def test_a_loss_passes_where_the_whole_interval_is_at_the_target_or_below(results_of, target, status):
    ends = {r: {"status": "completed", "metrics": {"val/f1_macro": 0.3, "val/loss": 1.5 + 0.01 * (r - 1)}}
            for r in range(3)}  # fmt: skip
    _, rows = results_of([(SMALL, ends)], gate("val/loss", target))
    assert rows[f"val/loss <= {target:g}"]["status"] == status


def test_at_the_target_passes(results_of):
    cells = [(SMALL, scores(0.25, 1.5))]
    low = results_of(cells, gate(target=0.1))[1]["val/f1_macro >= 0.1"]["low"]
    assert results_of(cells, gate(target=low), folder="at")[0] == "GO"


@pytest.mark.parametrize("target", [0.2, 0.3])
def test_repeats_of_equal_scores_decide_nothing(results_of, target):
    """With few recordings equal counts are likely: an interval without a width is no certainty."""
    decision, rows = results_of([(SMALL, scores(0.25, 1.5, step=0.0))], gate(target=target))
    (row,) = rows.values()
    assert (decision, row["status"]) == ("INVESTIGATE", "OPEN")
    assert "equal scores" in row["note"]


@pytest.mark.parametrize(("stretch", "is_reached"), [(0.27, True), (0.29, False)])
def test_stretch_is_reached_by_the_whole_interval(results_of, stretch, is_reached):
    _, rows = results_of([(SMALL, scores(0.3, 1.5))], gate(stretch=stretch))
    row = rows["val/f1_macro >= 0.2"]
    assert (row["status"], row["is_stretch_reached"]) == ("PASS", is_reached)


def test_one_gate_that_fails_outweighs_those_that_pass_and_those_that_are_open(results_of):
    decision, rows = results_of(
        [(SMALL, scores(0.3, 1.5))], gate(), gate("val/loss", 1.0), gate("val/f1_rare", 0.1)
    )
    assert [row["status"] for row in rows.values()] == ["PASS", "FAIL", "OPEN"]
    assert decision == "NO-GO"


def test_what_is_not_known_yet_is_no_failure(results_of):
    unfinished = scores(0.1, 2.0) | {3: "missing"}
    decision, rows = results_of([(SMALL, unfinished)], gate(), gate("val/f1_rare", 0.1))
    short, unmeasured = rows.values()
    assert decision == "INVESTIGATE"
    assert (short["status"], short["note"]) == ("OPEN", "not reached, and one trial is missing")
    assert (unmeasured["status"], unmeasured["value"]) == ("OPEN", None)
    assert unmeasured["note"] == "the best cell has no value of this metric"
    decision, rows = results_of([(SMALL, {0: "failed"})], gate(), folder="failed")
    assert (decision, rows["val/f1_macro >= 0.2"]["note"]) == ("INVESTIGATE", "no best cell yet")


@pytest.mark.parametrize("value", [0.1, 0.3])
def test_below_three_repeats_a_gate_is_open(results_of, value):
    ends = {r: 0.01 * r + value for r in range(2)}
    decision, rows = results_of([(SMALL, ends)], gate())
    row = rows["val/f1_macro >= 0.2"]
    assert (decision, row["status"], row["low"]) == ("INVESTIGATE", "OPEN", None)
    assert row["note"] == "fewer than three repeats: no interval"


def test_the_single_trials_of_a_search_pass_no_gate(results_of):
    cells = [({"optim.lr": 0.1}, {0: 0.1}), ({"optim.lr": 0.2}, {0: 0.9})]
    decision, rows = results_of(cells, gate(), kind="search", scheduler="asha", n_trials=2)
    assert (decision, rows["val/f1_macro >= 0.2"]["status"]) == ("INVESTIGATE", "OPEN")


def test_a_leaking_split_passes_no_gate(results_of):
    leaky = {"data.split": "random-windows"}
    decision, rows = results_of([(leaky, scores(0.9, 0.1))], gate())
    row = rows["val/f1_macro >= 0.2"]
    assert (decision, row["status"]) == ("INVESTIGATE", "OPEN")
    assert "leaks" in row["note"]


def test_the_report_shows_gates_and_the_decision(make_run, tmp_path):
    run = make_run([(SMALL, scores(0.3, 1.5))], gates=[gate(target=0.31, stretch=0.5)])
    out = tmp_path / "report"
    (study,) = write_report([run], out)["studies"]
    assert study["decision"] == "INVESTIGATE"
    (row,) = json.loads((out / "report.json").read_text())["studies"][0]["gates"]
    assert (row["criterion"], row["status"], row["n"]) == ("val/f1_macro >= 0.31", "OPEN", 3)
    for page in ("report.html", "report.md"):
        text = (out / page).read_text()
        assert "Gates: INVESTIGATE" in text and "0.5, not reached" in text
    assert r"val/f1\_macro \textgreater{}= 0.31" in next((out / "tables").glob("gates-*.tex")).read_text()


def test_a_study_without_gates_has_no_decision(make_run, tmp_path):
    run = make_run([(SMALL, scores(0.3, 1.5))])
    (study,) = write_report([run], tmp_path / "report")["studies"]
    assert (study["gates"], study["decision"]) == ([], None)
    assert "Gates" not in (tmp_path / "report" / "report.html").read_text()
    with pytest.raises(RunFolderError, match="capacity has no gates"):
        verdicts(load([run]))
    with pytest.raises(RunFolderError, match="no study 'capcity' in this run; it holds capacity"):
        verdicts(load([run]), "capcity")
