"""A choice confirmed on fresh repeats: rounds, who goes on, and what best.json says in the end."""

from __future__ import annotations

import html
import json

import pytest

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.files import write_json
from reports import choose, load, write_report
from reports.selection.confirmation import Round, confirmed, racing_rounds, shortlist, survivors
from tests.reports.conftest import config_id_of

FACTORS = [{"optim.lr": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3)]
IDS = [config_id_of(f) for f in FACTORS]


@pytest.mark.parametrize(
    ("n_configs", "n_repeats", "expected"),
    [
        (8, 5, [(8, 2), (4, 4), (2, 5)]),
        (8, 3, [(8, 2), (4, 3)]),
        (8, 2, [(8, 2)]),
        (4, 10, [(4, 2), (2, 10)]),
        (16, 10, [(16, 2), (8, 4), (4, 8), (2, 10)]),
        (3, 5, [(3, 2), (2, 5)]),
        (2, 5, [(2, 5)]),
        (1, 5, [(1, 5)]),
    ],
)
def test_the_better_half_goes_on_with_twice_the_seeds(n_configs, n_repeats, expected):
    assert racing_rounds(n_configs, n_repeats) == [Round(*each) for each in expected]


def test_one_repeat_confirms_nothing():
    with pytest.raises(ConfigError, match="--confirm 1 is out of range; it takes 2 or more"):
        racing_rounds(8, 1)


@pytest.fixture
def searched(make_run):
    """A search of four configs, by whose one repeat the last is best."""
    return make_run([(f, {0: v}) for f, v in zip(FACTORS, (0.1, 0.3, 0.2, 0.4), strict=True)], kind="search")


@pytest.fixture
def raced(make_run, searched):
    """Two rounds, after which the second config is best, and the runs of it with the names of the rounds."""
    values = {
        IDS[0]: [0.10, 0.12], IDS[1]: [0.31, 0.32, 0.33], IDS[2]: [0.20, 0.21], IDS[3]: [0.30, 0.29, 0.28],
    }  # fmt: skip
    path = None
    for number, (n_repeats, ids) in enumerate(((2, IDS), (3, [IDS[1], IDS[3]])), start=1):
        cells = [
            ({"optim.lr": f["optim.lr"]}, dict(enumerate(values[i][:n_repeats], start=10_000)))
            for f, i in zip(FACTORS, IDS, strict=True)
            if i in ids
        ]
        path = make_run(cells, folder="confirm", name=f"round-{number}", baseline=None)
    path.rename(searched / "confirm")
    return load([searched / "confirm"])


def test_the_shortlist_is_the_best_means_with_their_configs(searched):
    runs = load([searched])
    found = shortlist(runs, runs.studies, 3)
    assert [each["config_id"] for each in found] == [IDS[3], IDS[1], IDS[2]]
    assert found[0]["config"]["training"]["epochs"] == 4
    assert found[0]["mean"] == 0.4
    assert len(shortlist(runs, runs.studies, 100)) == 4


def test_survivors_are_the_best_of_a_round(raced):
    assert survivors(raced, "round-1", 2) == [IDS[1], IDS[3]]


def test_fresh_repeats_alone_decide(searched, raced):
    runs = load([searched])
    assert choose(runs)["config_id"] == IDS[3]
    best = confirmed(raced, ["round-1", "round-2"], shortlist(runs, runs.studies, 4))
    assert best["config_id"] == IDS[1]
    assert best["mean"] == pytest.approx(0.32)
    assert best["repeats"] == [10_000, 10_001, 10_002]
    assert best["factors"] == FACTORS[1] and best["study"] == "capacity"
    assert best["runner_up"]["config_id"] == IDS[3]
    assert [each["config_id"] for each in best["shortlist"]] == [IDS[1], IDS[3], IDS[2], IDS[0]]
    assert [each["n"] for each in best["shortlist"]] == [3, 3, 2, 2]
    assert sum(each["p_best"] for each in best["shortlist"]) == pytest.approx(1)
    assert best["p_best"] == best["shortlist"][0]["p_best"] > 0.5
    assert best["confirmed"]["before"]["mean"] == pytest.approx(0.3)
    rounds = [(each["configs"], len(each["repeats"])) for each in best["confirmed"]["rounds"]]
    assert rounds == [(4, 2), (2, 3)]
    assert best["rule"].endswith("twice as many: 4 configs with 2 repeats, 2 configs with 3 repeats.")
    assert "fresh repeats" in best["how_sure"] and "too high" not in best["how_sure"]
    assert json.loads(json.dumps(best, allow_nan=False)) == best
    unconfirmed = choose(runs)
    assert set(best) == set(unconfirmed) and unconfirmed["confirmed"] is None


def test_the_report_of_the_run_shows_what_was_confirmed(searched, raced, tmp_path):
    runs = load([searched])
    out = tmp_path / "out"
    assert write_report([searched], out)["confirmed"] == []
    assert "fresh repeats" not in (out / "report.md").read_text()

    best = confirmed(raced, ["round-1", "round-2"], shortlist(runs, runs.studies, 4))
    write_json(searched / "confirm" / "best.json", best)
    content = write_report([searched], out)
    assert content["confirmed"] == [best] == json.loads((out / "report.json").read_text())["confirmed"]
    for name in ("report.md", "report.html"):
        text = html.unescape((out / name).read_text())
        assert "Chosen on fresh repeats" in text
        assert "lr=0.0003 with val/f1_macro 0.3200" in text
        assert "In capacity, with 1 repeat, it had 0.3000." in text
        assert "lr=0.0003 (chosen)" in text
    rows = (out / "tables" / "confirmed-capacity.csv").read_text().splitlines()
    assert rows[1].startswith("lr=0.0003 (chosen),0.3200,") and len(rows) == 5


def test_a_foreign_choice_in_the_folder_of_the_race_is_named(searched, tmp_path):
    (searched / "confirm").mkdir()
    (searched / "confirm" / "best.json").write_text('{"config": {}}')
    with pytest.raises(RunFolderError, match=r"best\.json' is no choice of birdtune: it lacks 'config_id'"):
        write_report([searched], tmp_path / "out")
