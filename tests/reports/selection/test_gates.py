import json

import pytest

from birdnet_core.errors import RunFolderError
from reports import load, write_report
from reports.selection.gates import verdicts

SMALL, BIG = {"model.name": "small"}, {"model.name": "big"}


def gate(metric="val/f1_macro", target=0.2, stretch=None, investigate=None):
    return {"metric": metric, "target": target, "stretch": stretch, "investigate": investigate}


def scores(f1, loss, seed_step=0.01):
    """Return three repeats that completed, around the given scores."""
    return {
        seed: {
            "status": "completed",
            "metrics": {"val/f1_macro": f1 + seed_step * (seed - 1), "val/loss": loss},
        }
        for seed in range(3)
    }


@pytest.fixture
def results_of(make_run):
    """Return a function that gives the decision on a run of the given cells, and its gates by criterion."""

    def verdict_of(cells, *gates, **changes):
        (verdict,) = verdicts(load([make_run(cells, gates=list(gates), **changes)]))
        return verdict["decision"], {row["criterion"]: row for row in verdict["gates"]}

    return verdict_of


def test_the_best_cells_mean_over_repeats_is_what_counts(results_of):
    cells = [(SMALL, scores(0.1, 2.0)), (BIG, scores(0.3, 1.5))]
    decision, rows = results_of(cells, gate(stretch=0.31), gate("val/loss", 1.6, stretch=1.5))
    assert decision == "GO"
    f1, loss = rows["val/f1_macro >= 0.2"], rows["val/loss <= 1.6"]
    assert (f1["status"], f1["n"], f1["is_stretch_reached"]) == ("PASS", 3, False)
    assert f1["value"] == pytest.approx(0.3)
    assert f1["low"] == pytest.approx(0.3 - 4.30265 * 0.01 / 3**0.5, abs=1e-6)  # t(2) = 4.30265
    assert (loss["status"], loss["value"], loss["is_stretch_reached"]) == ("PASS", 1.5, True)


@pytest.mark.parametrize(
    ("investigate", "decision", "is_close"),
    [(None, "NO-GO", False), (0.25, "INVESTIGATE", True), (0.35, "NO-GO", False)],
)
def test_short_of_the_target_is_a_no_unless_it_is_close(results_of, investigate, decision, is_close):
    decided, rows = results_of([(SMALL, scores(0.3, 1.5))], gate(target=0.4, investigate=investigate))
    row = rows["val/f1_macro >= 0.4"]
    assert (decided, row["status"], row["is_close"]) == (decision, "FAIL", is_close)


def test_at_the_target_passes_and_one_failure_outweighs_what_passes(results_of):
    cells = [(SMALL, scores(0.25, 1.5, seed_step=0.0))]
    assert results_of(cells, gate(target=0.25))[0] == "GO"


def test_one_gate_that_fails_outweighs_those_that_pass(results_of):
    decision, rows = results_of([(SMALL, scores(0.3, 1.5))], gate(), gate("val/loss", 1.0))
    assert [row["status"] for row in rows.values()] == ["PASS", "FAIL"]
    assert decision == "NO-GO"


def test_what_is_not_known_yet_is_no_failure(results_of):
    unfinished = scores(0.1, 2.0) | {2: "missing"}
    decision, rows = results_of(
        [(SMALL, unfinished), (BIG, scores(0.15, 2.0))], gate(), gate("val/f1_rare", 0.1)
    )
    short, unmeasured = rows.values()
    assert decision == "INVESTIGATE"
    assert (short["status"], short["note"]) == ("UNKNOWN", "not reached, and one trial is missing")
    assert (unmeasured["status"], unmeasured["value"]) == ("UNKNOWN", None)
    decision, rows = results_of([(SMALL, {0: "failed"})], gate(), folder="failed")
    assert (decision, rows["val/f1_macro >= 0.2"]["note"]) == ("INVESTIGATE", "no best cell yet")


def test_a_search_that_goes_on_may_still_reach_it(results_of):
    cells = [({"optim.lr": 0.1}, {0: 0.1}), ({"optim.lr": 0.2}, {0: "pruned"})]
    search = {"kind": "search", "scheduler": "asha"}
    assert results_of(cells, gate(), n_trials=3, **search)[0] == "INVESTIGATE"
    assert results_of(cells, gate(), n_trials=2, folder="ended", **search)[0] == "NO-GO"


def test_a_leaking_split_passes_no_gate(results_of):
    leaky = {"data.split": "random-windows"}
    decision, rows = results_of([(leaky, scores(0.9, 0.1))], gate())
    row = rows["val/f1_macro >= 0.2"]
    assert (decision, row["status"]) == ("INVESTIGATE", "UNKNOWN")
    assert "leaks" in row["note"]


def test_results_that_may_be_chance_are_marked(results_of):
    _, rows = results_of([(SMALL, {0: 0.3})], gate())
    assert rows["val/f1_macro >= 0.2"]["note"] == "one repeat: it may be chance"
    _, rows = results_of([(SMALL, scores(0.21, 1.5, seed_step=0.05))], gate(), folder="wide")
    assert rows["val/f1_macro >= 0.2"]["note"].startswith("the target lies within the interval")


def test_the_report_shows_gates_and_the_decision(make_run, tmp_path):
    run = make_run([(SMALL, scores(0.3, 1.5))], gates=[gate(target=0.4, stretch=0.5, investigate=0.25)])
    out = tmp_path / "report"
    (study,) = write_report([run], out)["studies"]
    assert study["decision"] == "INVESTIGATE"
    (row,) = json.loads((out / "report.json").read_text())["studies"][0]["gates"]
    assert (row["criterion"], row["status"], row["n"]) == ("val/f1_macro >= 0.4", "FAIL", 3)
    for page in ("report.html", "report.md"):
        text = (out / page).read_text()
        assert "Gates: INVESTIGATE" in text and "0.5, not reached" in text
    assert r"val/f1\_macro \textgreater{}= 0.4" in next((out / "tables").glob("gates-*.tex")).read_text()


def test_a_study_without_gates_has_no_decision(make_run, tmp_path):
    run = make_run([(SMALL, scores(0.3, 1.5))])
    (study,) = write_report([run], tmp_path / "report")["studies"]
    assert (study["gates"], study["decision"]) == ([], None)
    assert "Gates" not in (tmp_path / "report" / "report.html").read_text()
    with pytest.raises(RunFolderError, match="capacity has no gates"):
        verdicts(load([run]))
    with pytest.raises(RunFolderError, match="no study 'capcity' in this run; it holds capacity"):
        verdicts(load([run]), "capcity")
