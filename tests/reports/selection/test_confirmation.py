"""A choice confirmed on fresh repeats: when a race is looked at, who leaves, and what best.json says."""

from __future__ import annotations

import html
import json
from dataclasses import replace

import pytest

from birdnet_core.errors import ConfigError, RunFolderError
from birdnet_core.records.files import write_json
from birdnet_core.records.run_folder import RunFolder
from reports import choose, load, write_report
from reports.selection.choice import SCHEMA
from reports.selection.confirmation import confirmed, level_of, looks, shortlist, survivors
from reports.statistics.analysis import results
from tests.reports.conftest import config_id_of

FACTORS = [{"optim.lr": lr} for lr in (1e-4, 3e-4, 1e-3, 3e-3)]
IDS = [config_id_of(f) for f in FACTORS]


@pytest.mark.parametrize(
    ("n_repeats", "expected"),
    [(3, [3]), (4, [3, 4]), (5, [3, 5]), (6, [3, 5, 6]), (10, [3, 5, 7, 9, 10]), (11, [3, 5, 7, 9, 11])],
)
def test_a_race_is_looked_at_after_three_repeats_and_every_two_to_the_last(n_repeats, expected):
    assert looks(n_repeats) == expected


def test_two_repeats_confirm_nothing():
    with pytest.raises(ConfigError, match="--confirm 2 is out of range; it takes 3 or more, 10 is"):
        looks(2)


@pytest.mark.parametrize("n_looks", [1, 2, 5])
def test_the_looks_of_a_race_share_the_errors_of_five_percent(n_looks):
    assert n_looks * (1 - level_of(n_looks)) == pytest.approx(0.05)


@pytest.fixture
def searched(make_run):
    """A search of four configs, by whose one repeat the last is best."""
    return make_run([(f, {0: v}) for f, v in zip(FACTORS, (0.1, 0.3, 0.2, 0.4), strict=True)], kind="search")


# Of the second and the fourth config only five repeats say that the second is better.
VALUES = {
    IDS[0]: [0.10, 0.14, 0.09], IDS[1]: [0.31, 0.35, 0.33, 0.34, 0.33],
    IDS[2]: [0.20, 0.18, 0.24], IDS[3]: [0.30, 0.28, 0.31, 0.28, 0.27],
}  # fmt: skip


@pytest.fixture
def race(make_run):
    """Return a function that writes the rounds of a race and returns their run: ids and repeats of each."""

    def write(*rounds, values=VALUES, folder="confirm"):
        for number, (n_repeats, ids) in enumerate(rounds, start=1):
            cells = [
                (f, dict(enumerate(values[i][:n_repeats], start=10_000)))
                for f, i in zip(FACTORS, IDS, strict=True)
                if i in ids
            ]
            path = make_run(cells, folder=folder, name=f"round-{number}")
        return path

    return write


LEADERS = [IDS[1], IDS[3]]


@pytest.fixture
def raced(searched, race):
    """Two rounds, after which the second config is best."""
    race((3, IDS), (5, LEADERS)).rename(searched / "confirm")
    return load([searched / "confirm"])


def test_the_shortlist_is_the_best_means_with_their_configs(searched):
    runs = load([searched])
    found = shortlist(runs, None, 3)
    assert [each["config_id"] for each in found] == [IDS[3], IDS[1], IDS[2]]
    assert found[0]["config"]["training"]["epochs"] == 4
    assert found[0]["mean"] == 0.4
    assert len(shortlist(runs, "capacity", 100)) == 4
    with pytest.raises(ConfigError, match="--shortlist 0 is out of range; it takes 1 or more"):
        shortlist(runs, None, 0)


def test_who_cannot_be_the_best_leaves_and_the_others_race_on(raced):
    assert survivors(raced, "round-1", 2, 0.0) == (LEADERS, False)
    assert survivors(raced, "round-2", 2, 0.0) == ([IDS[1]], True)


def test_more_looks_let_fewer_leave(race):
    """The fourth config is clearly behind by one look, and not by one of ten."""
    runs = load([race((5, LEADERS))])
    assert survivors(runs, "round-1", 1, 0.0)[0] == [IDS[1]]
    assert survivors(runs, "round-1", 200, 0.0) == (LEADERS, False)


def test_a_race_is_decided_where_the_leader_can_lose_no_more_than_the_tolerance(raced):
    study = next(s for s in raced.studies if s["name"] == "round-1")
    best = results(raced, study, level=level_of(2))[2].best.set_index("config_id")
    regret = float(best.loc[IDS[1], "regret"])
    assert 0 < regret < 0.2
    assert survivors(raced, "round-1", 2, regret * 0.9) == (LEADERS, False)
    assert survivors(raced, "round-1", 2, regret * 1.1) == (LEADERS, True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Scores that do not vary leave no doubt.
        ({IDS[1]: [0.3] * 3, IDS[3]: [0.2] * 3}, ([IDS[1]], True)),
        # A config without a completed trial leaves.
        ({IDS[1]: [0.31, 0.33, 0.34], IDS[3]: ["failed"] * 3}, ([IDS[1]], True)),
        # One that lacks a repeat stays where it may be the best.
        ({IDS[1]: [0.31, 0.33, 0.34], IDS[3]: [0.30, 0.33, "failed"]}, (LEADERS, False)),
    ],
)
def test_who_is_behind_where_scores_do_not_vary_or_trials_failed(race, values, expected):
    runs = load([race((3, LEADERS), values=values)])
    found, is_decided = survivors(runs, "round-1", 2, 0.0)
    assert (sorted(found), is_decided) == (sorted(expected[0]), expected[1])


def test_a_race_of_one_config_is_decided(race):
    assert survivors(load([race((3, [IDS[1]]))]), "round-1", 1, 0.0) == ([IDS[1]], True)


def test_fresh_repeats_alone_decide(searched, raced):
    runs = load([searched])
    assert choose(runs)["config_id"] == IDS[3]
    best = confirmed(raced, ["round-1", "round-2"], runs.studies[0], shortlist(runs, None, 4), 2)
    assert best["config_id"] == IDS[1]
    assert best["mean"] == pytest.approx(0.332)
    assert best["repeats"] == [10_000, 10_001, 10_002, 10_003, 10_004]
    assert best["factors"] == FACTORS[1] and best["study"] == "capacity"
    assert best["run"] == str(searched) and best["confirmed"]["run"] == str(searched / "confirm")
    assert best["config"]["training"]["epochs"] == 4
    assert best["runner_up"]["config_id"] == IDS[3]
    # Those of the last round, and apart from them those that left, the last first.
    assert [each["config_id"] for each in best["shortlist"]] == LEADERS
    left = best["confirmed"]["left"]
    assert [(each["config_id"], each["n"]) for each in left] == [(IDS[2], 3), (IDS[0], 3)]
    assert left[0]["factors"] == FACTORS[2]
    assert (best["not_worse"], best["regret"]) == ([IDS[1]], 0.0)
    assert best["confirmed"]["before"]["mean"] == pytest.approx(0.3)
    rounds = [(each["study"], each["configs"], len(each["repeats"])) for each in best["confirmed"]["rounds"]]
    assert rounds == [("round-1", 4, 3), ("round-2", 2, 5)]
    assert best["rule"] == (
        "By mean: the highest val/f1_macro. By a race on fresh repeats, which a config leaves when it cannot "
        "be the best: 4 configs with 3 repeats, 2 configs with 5 repeats."
    )
    assert "of fresh repeats, but it is the highest of the race: too high on average" in best["how_sure"]
    assert json.loads(json.dumps(best, allow_nan=False)) == best
    unconfirmed = choose(runs)
    assert set(best) == set(unconfirmed) and unconfirmed["confirmed"] is None


def test_the_cheapest_of_those_that_may_be_the_best_wins_a_race(race, searched, make_run):
    sizes = {IDS[1]: 900, IDS[3]: 100}
    cells = [
        (f, {10_000 + r: {"status": "completed", "metrics": {"val/f1_macro": v}, "n_params": sizes[i]}
             for r, v in enumerate(VALUES[i][:3])})
        for f, i in zip(FACTORS, IDS, strict=True) if i in LEADERS
    ]  # fmt: skip
    runs = load([make_run(cells, folder="confirm", name="round-1")])
    before = load([searched])
    given = (runs, ["round-1"], before.studies[0], shortlist(before, None, 4))
    assert confirmed(*given, 1)["config_id"] == IDS[1]
    assert confirmed(*given, 5, "cheapest")["config_id"] == IDS[3]


def test_the_report_of_the_run_shows_what_was_confirmed(searched, raced, tmp_path):
    out = tmp_path / "out"
    assert write_report([searched], out)["confirmed"] == []
    assert "Chosen on fresh repeats" not in (out / "report.md").read_text()

    runs = load([searched])
    best = confirmed(raced, ["round-1", "round-2"], runs.studies[0], shortlist(runs, None, 4), 2)
    write_json(searched / "confirm" / "best.json", best)
    content = write_report([searched], out)
    assert content["confirmed"] == [best] == json.loads((out / "report.json").read_text())["confirmed"]
    for name in ("report.md", "report.html"):
        text = html.unescape((out / name).read_text())
        assert "Chosen on fresh repeats" in text
        assert "lr=0.0003 with val/f1_macro 0.3320" in text
        assert "In capacity, with 1 repeat, it had 0.3000." in text
        assert "lr=0.0003 (chosen)" in text and "Looks at the race share the 5 % of their errors" in text
    rows = (out / "tables" / "confirmed-capacity.csv").read_text().splitlines()
    assert rows[1].startswith("lr=0.0003 (chosen),0.3320,") and len(rows) == 5
    assert rows[3].startswith("lr=0.001,0.2067,") and ",no," in rows[3]


def test_a_foreign_choice_in_the_folder_of_the_race_is_named(searched, tmp_path):
    (searched / "confirm").mkdir()
    (searched / "confirm" / "best.json").write_text(f'{{"schema": {SCHEMA}, "config": {{}}}}')
    with pytest.raises(RunFolderError, match=r"best\.json' is no choice of birdtune: it lacks 'config_id'"):
        write_report([searched], tmp_path / "out")


@pytest.mark.parametrize("schema", [None, SCHEMA - 1, SCHEMA + 1])
def test_a_choice_of_another_version_is_refused_with_what_to_do(searched, tmp_path, schema):
    (searched / "confirm").mkdir()
    write_json(searched / "confirm" / "best.json", {"schema": schema, "config": {}})
    with pytest.raises(RunFolderError, match=r"best\.json' is of another version.*best RUN --confirm N"):
        write_report([searched], tmp_path / "out")


def test_the_tolerance_is_that_of_the_config_which_the_rule_would_choose(race):
    """The second of the leaders is cheaper, and may lose more than the first."""
    path = race((3, LEADERS))
    run = RunFolder(path)
    for record in run.records().values():
        run.write_record(replace(record, n_params=100 if record.config_id == LEADERS[1] else 900))
    runs = load([path])
    best = results(runs, runs.studies[0], level=level_of(2))[2].best.set_index("config_id")
    by_mean, cheapest = (float(best.loc[name, "regret"]) for name in LEADERS)
    assert best["may_be_best"].all() and by_mean < cheapest
    between = (by_mean + cheapest) / 2
    assert survivors(runs, "round-1", 2, between, "mean")[1]
    assert not survivors(runs, "round-1", 2, between, "cheapest")[1]
    assert survivors(runs, "round-1", 2, cheapest * 1.01, "cheapest")[1]
