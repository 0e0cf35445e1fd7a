from __future__ import annotations

import csv
import dataclasses
import html.parser
import json
import math
import re

import numpy as np
import pytest

from birdnet_core.errors import RunFolderError
from reports import write_report
from reports.__main__ import main
from search_spaces.designs import FractionalFactorial, LatinHypercube, LeaveOneOut, Range

CORNERS = [{"model.name": m, "loss.name": loss} for m in ("small", "big") for loss in ("ce", "focal")]
FACTORS = {"model.name": ["small", "big"], "loss.name": ["ce", "focal"]}
CE, FOCAL = {"loss.name": "cross_entropy"}, {"loss.name": "focal"}
EVIL = '<script>alert("x")</script>'


class Page(html.parser.HTMLParser):
    """Collect the tags and the visible text of a page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.links, self.text, self.elements = [], [], "", []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.elements.append((tag, attrs))
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_data(self, data):
        self.text += data


def n_charts(page):
    return sum(("class", "chart") in attrs for tag, attrs in page.elements if tag == "figure")


def report(run, out):
    """Return the JSON of the one study, the page and the folder."""
    content = write_report([run], out)
    return content["studies"][0], Page((out / "report.html").read_text()), out


@pytest.fixture
def written(make_run, tmp_path):
    """Return a function that reports a run of the given cells."""
    return lambda cells, **changes: report(make_run(cells, **changes), tmp_path / "report")


def test_a_search_of_several_objectives_shows_its_front_first_and_no_winner(written):
    cells = [
        ({"model.width": width}, {0: {"status": "completed", "metrics": {"val/f1_macro": f1}, "n_params": n}})
        for width, f1, n in ((8, 0.3, 1000), (16, 0.5, 5000), (32, 0.4, 20_000), (64, 0.6, 90_000))
    ]
    study, page, out = written(cells, kind="search", also=["n_params"])
    assert study["best"] is None
    assert [each["label"] for each in study["front"]] == ["#3", "#1", "#0"]
    text = " ".join(page.text.split())
    answer = (
        "3 are on the Pareto front of val/f1_macro and n_params: #3 (val/f1_macro 0.600, n_params 90,000)"
    )
    assert answer in text and "is chosen, with" not in text
    assert (out / "figures" / "capacity-front-n_params.svg").exists()
    with (out / "tables" / "front-capacity.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file) if row["is_on_front"] == "True"] == [
            "#3",
            "#1",
            "#0",
        ]


def test_a_search_with_several_seeds_shows_how_much_its_best_varies(make_run, tmp_path):
    def run(seed, *values, **changes):
        cells = [({"optim.lr": 10.0**-i}, {0: value}) for i, value in enumerate(values, start=2)]
        return make_run(cells, folder=f"run{seed}{len(changes)}", kind="search", seed=seed, **changes)

    runs = [
        run(0, 0.3, 0.5),
        run(1, 0.4, 0.2),
        run(2, 0.1, 0.6),
        run(3, 0.9, 0.9, epochs=9),
        run(0, 0.7, n_trials=7),
    ]
    content = write_report(runs, tmp_path / "report")
    (found,) = content["repeated_searches"]
    assert [(row["seed"], row["best"]) for row in found] == [(0, 0.5), (1, 0.4), (2, 0.6)]
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "found a best val/f1\\_macro" in text or "found a best val/f1_macro" in text
        assert "0.5000 on average (std 0.1000, 0.4000 to 0.6000)" in text


def test_the_page_counts_what_breaks_a_constraint(written):
    cells = [({"model.width": 8}, {0: 0.3}), ({"model.width": 64}, {0: "infeasible"})]
    limit = {"name": "n_params", "comparison": "<=", "limit": 500_000}
    study, page, _ = written(cells, kind="search", constraints=[limit])
    assert [cell["is_infeasible"] for cell in study["cells"]] == [False, True]
    text = " ".join(page.text.split())
    assert "Constraints: n_params<=500000; 1 of 2 break one, 1 of them not trained" in text
    assert "#1 (infeasible)" in text and "none: not trained" in text


@pytest.fixture(scope="module")
def two_by_two(write_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("two_by_two")
    error = {
        "status": "failed",
        "epochs": 1,
        "error": "Traceback\nOutOfMemoryError: 512 MiB",
        "traceback": "T",
    }
    ends = [{0: 0.10, 1: 0.12, 2: 0.11}, {0: 0.11, 1: 0.12, 2: error}, {0: 0.20, 1: 0.19, 2: 0.21}]
    ends.append({0: 0.26, 1: 0.27, 2: 0.24})
    cells = list(zip(CORNERS, ends, strict=True))
    return report(write_run(path / "run", cells, factors=FACTORS), path / "report")


def test_json_has_schema_5_and_nothing_else(two_by_two):
    study, _, out = two_by_two
    text = (out / "report.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {
        "schema": 5,
        "studies": [study],
        "confirmed": [],
        "repeated_searches": [],
        "earlier_work": None,
    }
    assert set(study) == {"name", "question", "metric", "direction", "data", "design", "cells", "level",
                          "constraints", "front",
                          "contrasts", "claims", "rank_correlations", "importance", "resources",
                          "early_stopping", "best", "gates", "decision", "by_recording", "confusions",
                          "answer", "warnings"}  # fmt: skip
    assert set(study["cells"][0]) == {
        "factors", "n", "n_failed", "n_other", "n_pruned", "is_infeasible", "metrics", "n_params",
        "epochs_to_best", "hours", "gpu_hours", "repeats", "trial_ids", "unequal_epochs",
    }  # fmt: skip
    assert set(study["cells"][0]["metrics"]["val/f1_macro"]) == {"mean", "low", "high", "values"}
    for contrast in (*study["contrasts"], *study["claims"]):
        assert set(contrast) - {"family"} == {"kind", "metric", "label", "factors", "cell", "estimate", "low",
                                              "high", "p", "verdict", "aliases", "note"}  # fmt: skip


def test_json_has_the_contrasts_of_a_study_and_those_that_are_differences(two_by_two):
    study, _, _ = two_by_two
    assert study["level"] == 0.95 and all(row["family"] for row in study["contrasts"])
    kinds = [row["kind"] for row in study["contrasts"]]
    assert kinds == ["baseline"] * 3 + ["main"] * 2 + ["interaction"] + ["simple"] * 2
    baseline = study["contrasts"][:3]
    assert [row["cell"] for row in baseline] == [1, 2, 3], "places in cells"
    assert [study["cells"][row["cell"]]["factors"] for row in baseline] == CORNERS[1:]
    claims = [row["label"] for row in study["claims"]]
    assert claims == [row["label"] for row in study["contrasts"] if row["low"] > 0 or row["high"] < 0]
    assert "big · focal vs baseline" in claims and "small · focal vs baseline" not in claims
    verdicts = {row["label"]: row["verdict"] for row in study["contrasts"]}
    assert verdicts["model: big vs small"] == "higher"
    assert verdicts["small · focal vs baseline"] is None
    assert study["answer"].startswith(f"{len(claims)} of 8 contrasts in val/f1_macro are differences")


def test_failed_trial_is_counted_in_its_row_and_named_on_the_page(two_by_two):
    study, page, _ = two_by_two
    assert [(c["n"], c["n_failed"]) for c in study["cells"]] == [(3, 0), (2, 1), (3, 0), (3, 0)]
    assert "OutOfMemoryError: 512 MiB" in page.text


def test_every_trial_is_on_the_page(two_by_two):
    study, page, _ = two_by_two
    ids = [trial_id for cell in study["cells"] for trial_id in cell["trial_ids"]]
    assert len(ids) == 11 and all(trial_id in page.text for trial_id in ids)


def test_page_states_question_rule_and_bias(two_by_two):
    study, page, _ = two_by_two
    assert study["question"] in page.text
    assert study["best"]["rule"] in page.text and study["best"]["how_sure"] in page.text
    assert "too high on average" in page.text and "does not open the test split" in page.text


def test_page_states_what_the_split_separates_and_what_it_does_not(two_by_two):
    _, page, _ = two_by_two
    assert "On the split: the split does not separate recordists." in page.text
    assert "never in two splitsrecording_id" in page.text
    assert "1 rare, 0 medium, 1 common" in page.text


def test_page_needs_nothing_else(two_by_two):
    _, page, _ = two_by_two
    assert not {"link", "iframe", "img"} & set(page.tags)
    scripts = [dict(attrs) for tag, attrs in page.elements if tag == "script"]
    assert [each.get("id") for each in scripts if "type" not in each] == [None, "vega", "page"], "its own"
    assert [link for link in page.links if not link.startswith("#")] == []
    assert n_charts(page) == 7


def test_every_file_of_the_report_is_written(two_by_two):
    _, _, out = two_by_two
    names = ("answer", "cells", "differences", "interaction", "curves", "loss", "resources")
    figures = {
        f"capacity-{name}{width}.{kind}"
        for name in names
        for width in ("", "-column")
        for kind in ("png", "svg", "pdf")
    }
    assert {p.name for p in (out / "figures").iterdir()} == figures
    tables = {
        f"{name}-capacity.{kind}"
        for name in ("cells", "failures", "contrasts", "paper", "progression", "resources", "trials")
        for kind in ("csv", "md", "tex")
    }
    assert {p.name for p in (out / "tables").iterdir()} == tables


def test_the_first_screen_has_the_largest_difference_and_what_the_answer_rests_on(two_by_two):
    _, page, _ = two_by_two
    first = page.text[: page.text.index("How sure")]
    assert re.search(
        r"\d of 8 contrasts in val/f1_macro are differences; the largest: .* \+0\.\d{3} \(95 % int", first
    )
    assert "Chosen: big · focal, 0.257 (95 % interval" in first
    assert "Trials: 11 completed, 1 failed; 3 repeats on 3 of 5 folds, 4 epochs at most" in first
    assert "Not known: the score on the test split, which is not opened; the split does not" in first


def test_the_table_for_a_paper_has_the_best_first_and_differences_from_the_baseline(two_by_two):
    _, page, out = two_by_two
    head, _, *rows = (out / "tables" / "paper-capacity.md").read_text().splitlines()
    assert head == "| cell | F1-macro | 95 % interval | difference | its interval | n |"
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert names[0] == "big · focal" and len(names) == 4
    assert next(row for row in rows if row.startswith("| small · ce")).split(" | ")[3] == "baseline"
    assert "We compared 4 configurations with 3 repeats each by val/f1_macro" in page.text


def test_a_wide_table_hides_columns_until_they_are_chosen(two_by_two):
    _, page, _ = two_by_two
    heads = [dict(attrs) for tag, attrs in page.elements if tag == "th"]
    assert any("hidden" in attrs for attrs in heads) and not all("hidden" in attrs for attrs in heads)
    assert page.tags.count("caption") == page.tags.count("table")


def test_figures_of_the_markdown_exist(two_by_two):
    _, _, out = two_by_two
    paths = re.findall(r"\]\((figures/[^)]+)\)", (out / "report.md").read_text())
    assert len(paths) == 7 and all((out / path).is_file() for path in paths)


def test_one_repeat_has_null_intervals_and_the_page_says_why(written):
    study, page, _ = written([(CE, {0: 0.1}), (FOCAL, {0: 0.2})])
    score = study["cells"][0]["metrics"]["val/f1_macro"]
    assert (score["mean"], score["low"], score["high"]) == (0.1, None, None)
    (contrast,) = study["contrasts"]
    assert contrast["estimate"] == pytest.approx(0.1) and contrast["p"] is None and not contrast["family"]
    assert study["claims"] == []
    assert study["answer"].startswith("No verdict on a difference: fewer than 3 repeats.")
    assert "none: fewer than three repeats" in page.text and "its lead may be chance" in page.text


def test_unequal_epochs_are_marked_and_not_compared(written):
    short = {"status": "completed", "epochs": 2, "best_epoch": 2, "metrics": {"val/f1_macro": 0.9}}
    third = {"loss.name": "third"}
    study, page, _ = written(
        [(CE, {0: 0.1, 1: 0.2, 2: 0.1}), (FOCAL, dict.fromkeys(range(3), short)),
         (third, {0: 0.2, 1: 0.3, 2: 0.21})]
    )  # fmt: skip
    assert [cell["unequal_epochs"] for cell in study["cells"]] == [False, True, False]
    unequal, equal = study["contrasts"]
    assert (unequal["estimate"], unequal["note"]) == (None, "trained unequal epochs: focal")
    assert equal["estimate"] == pytest.approx(0.31 / 3) and equal["family"]
    assert "Trained unequal epochs and therefore not compared: focal" in page.text


def test_study_where_nothing_completed_still_has_a_report(written):
    study, page, _ = written([(CE, {0: "failed"}), (FOCAL, {0: "running"})])
    assert study["best"] is None
    assert "1 failed, 1 running" in page.text


def test_study_that_has_not_started_still_has_a_report(written):
    study, page, _ = written([(CE, {0: "missing"}), (FOCAL, {0: "missing"})])
    assert [cell["n"] for cell in study["cells"]] == [0, 0]
    assert "2 trials planned and not started" in page.text


PARTS = {name: ["off", "on"] for name in ("mixup", "noise", "shift", "stretch", "pitch")}


def of_design(design, levels, effect=0.05, **changes):
    """Return cells, and the fields of their study file, in which the first factor alone has an effect."""
    levels = {name: tuple(values) for name, values in levels.items()}
    baseline = {name: values[0] for name, values in levels.items()}
    cells, rng = [], np.random.default_rng(1)
    for cell in design.cells(levels, baseline):
        mean = 0.3 + effect * (next(iter(cell.values())) == "on")
        cells.append((cell, {seed: float(mean + 0.001 * rng.normal()) for seed in range(3)}))
    facts = {"kind": design.kind, "n_cells": len(cells), **design.facts(levels, baseline)}
    return cells, {"factors": {name: list(v) for name, v in levels.items()}, "design": facts, **changes}


def test_a_fraction_prints_its_resolution_and_aliases_and_what_each_effect_may_as_well_be(written):
    cells, fields = of_design(FractionalFactorial("III"), PARTS)
    study, page, out = written(cells, **fields)
    assert study["design"]["resolution"] == "III" and study["design"]["aliases"]["A"] == ["-BE"]
    main = [row for row in study["contrasts"] if row["kind"] == "main"]
    assert [row["factors"] for row in main] == [[name] for name in PARTS]
    assert [row["aliases"] for row in main] == [study["design"]["aliases"][letter] for letter in "ABCDE"]
    markdown = (out / "report.md").read_text()
    for text in (page.text, markdown):
        assert "Ablation (fractional factorial) of mixup in {off, on}" in text
        for note in study["design"]["notes"]:
            assert note in text
        assert "resolution III" in text and "A = -BE" in text
        assert "A main effect may be due to an interaction that it is aliased with." in text
    assert re.search(r"\| mixup: on vs off \| main \| \+0\.0[45].*\| higher \| -BE \|", markdown)
    csv = (out / "tables" / "contrasts-capacity.csv").read_text().splitlines()
    assert len(csv) == 1 + 7 + 5 and csv[0].startswith("kind,metric,label,factors,cell,estimate")


def test_of_many_factors_a_cell_is_named_by_what_differs_from_the_baseline(written):
    levels = {name: ["on", "off"] for name in PARTS}
    cells, fields = of_design(LeaveOneOut(), levels)
    _, page, out = written(cells, **fields)
    rows = (out / "tables" / "cells-capacity.md").read_text().splitlines()[2:]
    assert [row.split("|")[1].split("(")[0].strip() for row in rows] == [
        "base", "mixup=off", "noise=off", "shift=off", "stretch=off", "pitch=off",
        "mixup=off · noise=off · shift=off · stretch=off · pitch=off",
    ]  # fmt: skip
    assert "leaves one component out" in page.text
    assert "compared with the baseline mixup=on · noise=on · shift=on · stretch=on · pitch=on" in page.text


def test_a_screen_has_rank_correlations_a_figure_a_factor_and_no_baseline(written):
    design = LatinHypercube(10)
    ranges = {"optim.lr": Range(1e-4, 1e-2, log=True), "dropout": Range(0.0, 0.8)}
    cells = [
        (cell, {s: 0.1 + 10 * cell["optim.lr"] + 0.001 * s for s in (0, 1)})
        for cell in design.cells(ranges, {})
    ]
    facts = {"kind": design.kind, "n_cells": 10, **design.facts(ranges, {})}
    factors = {name: dataclasses.asdict(r) for name, r in ranges.items()}
    study, page, out = written(cells, factors=factors, design=facts, baseline=None)
    assert study["contrasts"] == study["claims"] == []
    assert [(r["factor"], r["n_cells"]) for r in study["rank_correlations"]] == [
        ("optim.lr", 10),
        ("dropout", 10),
    ]
    assert study["rank_correlations"][0]["rho"] == pytest.approx(1)
    assert "optim.lr from 0.0001 to 0.01, evenly in the logarithm; dropout from 0 to 0.8" in page.text
    assert (
        "Screening: rank correlations with val/f1_macro are optim.lr +1.00 (in perfect order: no interval), "
        "dropout "
    ) in page.text
    assert "compared with the baseline" not in page.text and "vs baseline" not in page.text
    figures = {p.stem for p in (out / "figures").glob("*.png") if not p.stem.endswith("-column")}
    assert figures == {
        f"capacity-{name}" for name in ("answer", "cells", "by-optim.lr", "by-dropout", "resources")
    }
    columns = "| cell | val/f1_macro | 95 % interval | optim.lr | dropout |"
    assert (out / "tables" / "cells-capacity.md").read_text().startswith(columns)
    assert "Screening: rank correlations" in (out / "report.md").read_text()


def test_cells_that_are_one_config_are_named(make_run, tmp_path):
    path = make_run([({"p": 0, "alpha": 1}, {0: 0.1}), ({"p": 0, "alpha": 2}, {0: "missing"})])
    file = path / "studies" / "capacity.json"
    study = json.loads(file.read_text())
    study["cells"][1]["config_id"] = study["cells"][0]["config_id"]
    file.write_text(json.dumps(study))
    study, page, _ = report(path, tmp_path / "report")
    assert [cell["n"] for cell in study["cells"]] == [1, 1]
    assert "2 cells are only 1 configs: equal rows are the same trials" in page.text


@pytest.mark.parametrize("kind", ["ablation", "search"])
def test_hostile_names_stay_text(written, kind):
    error = {"status": "failed", "error": EVIL}
    scored = {"status": "completed", "metrics": {"val/f1_macro": 0.4}, "f1_per_species": {EVIL: 0.5}}
    cells = [({"loss.name": EVIL}, {0: scored}), ({"loss.name": "b"}, {0: error})]
    study, page, out = written(cells, kind=kind, name="evil", question=EVIL)
    assert "alert" not in [dict(attrs) for tag, attrs in page.elements if tag == "script"]
    assert page.text.count(EVIL) >= 4
    assert "<script" not in (out / "report.md").read_text().split("```json")[0]
    assert study["question"] == EVIL


def search_of(n):
    pruned = {"status": "pruned", "epochs": 1, "best_epoch": 1, "metrics": {"val/f1_macro": 0.01}}
    return [({"optim.lr": 10.0**-i}, {0: pruned if i % 5 == 4 else 0.1 + 0.01 * i}) for i in range(n)]


def test_search_is_sorted_by_value_with_pruned_trials_last(written):
    study, page, _ = written(search_of(10), kind="search", scheduler="asha")
    means = [cell["metrics"]["val/f1_macro"]["mean"] for cell in study["cells"]]
    assert means[:8] == sorted(means[:8], reverse=True) and means[8:] == [None, None]
    assert [cell["n_pruned"] for cell in study["cells"]] == [0] * 8 + [1] * 2
    assert study["best"]["factors"] == study["cells"][0]["factors"]
    assert n_charts(page) == 6


def test_a_search_by_folds_ranks_those_with_all_folds_first_with_their_intervals(written):
    cells = [({"optim.lr": n / 1000}, {0: 0.9 - n / 100}) for n in range(1, 9)]
    cells[0][1][1] = 0.88
    cells += [({"optim.lr": n / 10}, {0: 0.3, 1: 0.4 + n / 10, 2: 0.4}) for n in (1, 2)]
    study, page, _ = written(cells, kind="search")
    assert [cell["n"] for cell in study["cells"]] == [3, 3, 2] + [1] * 7
    assert [cell["metrics"]["val/f1_macro"]["low"] is None for cell in study["cells"]] == [False] * 2 + [
        True
    ] * 8
    assert study["best"]["factors"] == {"optim.lr": 0.2} and study["best"]["low"] is not None
    assert "Search of 10 trials, 4 epochs at most, up to 3 folds a config" in page.text
    assert (
        "Of 10 trials (10 completed), trial #" in page.text
        and "2 of 10 configs have all 3 folds" in page.text
    )
    assert "8 of 10 configs have fewer than 3 folds" in page.text


def test_a_search_names_its_most_important_parameter_at_one_epoch(written):
    rng = np.random.default_rng(0)
    space = {"optim.lr": {"low": 1e-5, "high": 1e-1, "log": True}, "model.dropout": {"low": 0.0, "high": 0.8}}
    cells = [
        ({"optim.lr": float(10**lr), "model.dropout": float(dropout)}, {0: float(0.5 - 0.1 * (lr + 3) ** 2)})
        for lr, dropout in zip(rng.uniform(-5, -1, 40), rng.uniform(0, 0.8, 40), strict=True)
    ]
    study, page, out = written(cells, kind="search", space=space)
    assert [row["parameter"] for row in study["importance"]] == ["optim.lr", "model.dropout"]
    assert study["importance"][0]["epoch"] == 4 and study["importance"][0]["n_trials"] == 40
    for text in (page.text, (out / "report.md").read_text()):
        assert "Importance of parameters" in text and "All trials are compared at epoch 4" in text
        assert "Most important of 2 parameters for val/f1_macro at epoch 4: optim.lr" in text.replace(
            "\\", ""
        )
    assert (out / "figures" / "capacity-importance.svg").is_file()
    assert (out / "tables" / "importance-capacity.tex").is_file()


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ("fifo", "no early termination"),
        ("asha", "early termination by ASHA"),
        ("hyperband", "early termination by asynchronous HyperBand"),
        ("median", "early termination by the median stopping rule"),
    ],
)
def test_a_search_says_what_ended_its_trials(written, scheduler, words):
    _, page, _ = written(search_of(2), kind="search", scheduler=scheduler)
    assert f"{words};" in page.text


def test_long_search_folds_all_but_twenty(written):
    _, page, out = written(search_of(26), kind="search")
    assert "6 more" in page.text
    assert len((out / "tables" / "cells-capacity.csv").read_text().splitlines()) == 27


def test_the_page_has_the_first_rows_of_a_table_of_thousands_and_names_the_file_of_all(
    make_run, tmp_path, monkeypatch
):
    run, out, n_rows = make_run(search_of(26), kind="search"), tmp_path / "report", []
    for n in (26, 22):  # written anew, as after more trials
        monkeypatch.setattr("reports.page.catalogue.N_MOST", n)
        _, page, _ = report(run, out)
        n_rows.append(page.tags.count("tr"))
        names = [out / "tables" / f"{name}-capacity.csv" for name in ("cells", "trials")]
        assert all(len(path.read_text().splitlines()) == 27 for path in names)
        others = [path.with_suffix(ending) for path in names for ending in (".md", ".tex")]
        assert [path.exists() for path in others] == [n == 26] * 4
        cut = "The page has the first 22 of 26 rows, tables/trials-capacity.csv all."
        assert (cut in page.text) == (n == 22) and "6 more" in page.text
    assert n_rows[0] - n_rows[1] == 2 * 4
    text = (out / "report.md").read_text()
    assert "6 more in `tables/cells-capacity.csv`" in text
    assert "All trials: `tables/trials-capacity.csv`" in text


def test_no_table_of_a_study_is_longer_on_the_page(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.page.catalogue.N_MOST", 2)
    failed = {"status": "failed", "error": "RuntimeError: no", "epochs": 1}
    cells = [({"optim.lr": 10.0**-i}, {0: 0.2, 1: 0.2 + 0.01 * i, 2: failed}) for i in range(4)]
    _, page, out = report(make_run(cells, baseline={"optim.lr": 1.0}), tmp_path / "report")
    for name, n in (("contrasts", 3), ("cells", 4), ("failures", 4), ("trials", 12)):
        assert f"The page has the first 2 of {n} rows, tables/{name}-capacity.csv all." in page.text
        assert len((out / "tables" / f"{name}-capacity.csv").read_text().splitlines()) == n + 1
        assert not (out / "tables" / f"{name}-capacity.tex").exists()


def test_linear_algebra_has_one_thread_while_a_report_is_written(make_run, tmp_path, monkeypatch):
    from threadpoolctl import threadpool_info

    from reports.page import report as module

    def n_threads():
        return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}

    before, seen, load = n_threads(), [], module.load
    monkeypatch.setattr(module, "load", lambda *given: (seen.append(n_threads()), load(*given))[1])
    write_report([make_run([(CE, {0: 0.4, 1: 0.5})])], tmp_path / "report")
    assert seen == [{1}] and n_threads() == before


def test_a_large_report_with_the_help_of_other_processes_is_the_same(make_run, tmp_path, monkeypatch):
    run = make_run([(CE, {0: 0.4, 1: 0.5}), (FOCAL, {0: 0.45, 1: 0.3})])
    alone = write_report([run], tmp_path / "alone")
    monkeypatch.setattr("reports.page.report.LARGE", 0)
    assert write_report([run], tmp_path / "helped") == alone
    files = [
        {path.relative_to(out) for path in out.rglob("*")}
        for out in (tmp_path / "alone", tmp_path / "helped")
    ]
    assert files[0] == files[1] and len(files[0]) > 20


def test_studies_of_one_name_do_not_overwrite_each_other(make_run, tmp_path):
    paths = [make_run([(CE, {0: 0.1})], folder=name) for name in ("a", "b")]
    write_report(paths, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out" / "tables").glob("cells-*.csv")} == {
        "cells-capacity.csv",
        "cells-capacity-2.csv",
    }


def test_command_writes_a_report_and_says_where(make_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(make_run([(CE, {0: 0.1})])), "--out", str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    assert (out / "report.html").is_file()


def test_command_names_a_missing_folder_and_fails(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_out_that_is_a_file_is_named(make_run, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(RunFolderError, match="it is a file"):
        write_report([make_run([(CE, {0: 0.1})])], tmp_path / "out")


LEAK = "LEAKAGE: clips were split at random: 9 of 10 validation clips share a recording_id with training"


def of_split(split, value):
    return {"status": "completed", "metrics": {"val/f1_macro": value}, "config": {"data": {"split": split}}}


def test_leakage_stands_before_any_score(written):
    data = {"notes": ["2 recordings name no site", LEAK], "scored": "clips", "n_val": 10}
    study, page, out = written([(CE, {0: 0.9, 1: 0.8})], data=data)
    markdown = (out / "report.md").read_text()
    for text in (page.text, markdown):
        assert "Warning" in text and text.index(LEAK) < text.index("Of 1 cells")
    assert "validation clips10" in page.text and "validation recordings" not in page.text
    assert LEAK in study["data"]["notes"]


def test_no_warning_without_leakage(two_by_two):
    _, page, out = two_by_two
    assert "Warning" not in page.text + (out / "report.md").read_text()


def test_the_best_of_two_splits_is_the_one_that_does_not_leak(written):
    grouped, random = {"data.split": "grouped"}, {"data.split": "random-windows"}
    cells = [
        (grouped, {repeat: of_split("grouped", 0.2 + repeat / 100) for repeat in range(3)}),
        (random, {repeat: of_split("random-windows", 0.9 + repeat / 50) for repeat in range(3)}),
    ]
    study, page, out = written(
        cells, data={"notes": [LEAK]}, factors={"data.split": ["grouped", "random-windows"]}
    )
    assert study["best"]["factors"] == grouped
    assert "it is the only config that competes" in study["best"]["how_sure"]
    assert "Of 2 cells (6 completed), split=grouped is chosen" in study["answer"]
    for text in (page.text, (out / "report.md").read_text()):
        assert "This concerns split=random-windows. The other cells" in text
        assert "split=random-windows (leaky split)" in text
        assert "one leaks, and is scored by clip" in text
    (row,) = study["claims"]
    assert row["estimate"] == pytest.approx(0.71) and row["note"] == "one leaks, and is scored by clip"
    assert study["answer"].startswith("1 of 1 contrast in val/f1_macro is a difference")


def test_where_every_split_leaks_the_best_says_so(written):
    cells = [(factors, {seed: of_split("random-windows", 0.5 + seed / 10) for seed in (0, 1)})
             for factors in (CE, FOCAL)]  # fmt: skip
    study, page, _ = written(cells, data={"notes": [LEAK]})
    assert "Its split leaks (random-windows)" in study["best"]["how_sure"]
    assert "This concerns" not in page.text
    assert page.text.count("(leaky split") + page.text.count("leaky split)") >= 2


@pytest.mark.parametrize(
    ("folds", "n_repeats", "words"),
    [
        ({"n": 1}, 3, "All repeats were validated on the same recordings"),
        ({"n": 5}, 3, "3 repeats validated 3 of 5 folds: the other recordings were never scored."),
        ({"n": 3}, 3, None),
    ],
)
def test_the_page_says_which_recordings_the_repeats_validated(written, folds, n_repeats, words):
    ends = {repeat: 0.2 + repeat / 10 for repeat in range(n_repeats)}
    _, page, _ = written([(CE, ends), (FOCAL, ends)], data={"folds": folds})
    assert words in page.text if words else "validated on the same" not in page.text
    assert ("were never scored" in page.text) == (words is not None and "never" in words)


def test_the_answer_names_the_differences_that_hold_the_largest_first(written):
    base = {0: 0.100, 1: 0.110, 2: 0.090, 3: 0.105}
    shifts = {"same": 0.001, "more": 0.05, "most": 0.2}
    noise = (0.001, -0.002, 0.002, 0.0)
    cells = [({"loss.name": "ce"}, base)]
    for n, (name, shift) in enumerate(shifts.items()):
        ends = {r: v + shift + noise[(r + n) % 4] for r, v in base.items()}
        cells.append(({"loss.name": name}, ends))
    study, page, out = written(cells, factors={"loss.name": ["ce", *shifts]})
    assert [row["label"] for row in study["claims"]] == ["more vs baseline", "most vs baseline"]
    answer = study["answer"]
    assert answer.startswith(
        "2 of 3 contrasts in val/f1_macro are differences, by intervals that hold together at 95 %: "
        "most vs baseline: +0.200 ("
    )
    assert "; more vs baseline: +0.050 (" in answer and "same vs" not in answer
    assert "Of 4 cells (16 completed), most is chosen, with val/f1_macro" in answer
    assert "It is the best of 4 at 95 %." in answer
    assert answer in page.text and "−0.0" in (out / "tables" / "contrasts-capacity.md").read_text()


NULL = [(CE, {0: 0.10, 1: 0.14, 2: 0.09}), (FOCAL, {0: 0.12, 1: 0.11, 2: 0.10})]


def test_a_study_without_a_difference_begins_with_that_and_what_one_would_take(written):
    study, page, _ = written(NULL)
    assert study["claims"] == []
    assert re.match(
        r"No difference in val/f1_macro can be claimed, of 1 contrast\. By the spread of these repeats, a "
        r"difference of two cells would take about \d+ repeats for one of 0\.05, \d+ repeats for one of "
        r"0\.02\.",
        study["answer"],
    )
    assert "At 95 %, 2 of 2 may be the best, this one among them." in study["answer"]
    assert study["answer"] in page.text


def test_the_ablations_of_a_page_share_the_five_percent(make_run, tmp_path):
    """What holds at 95 % in a page of its own does not on a page of ten."""
    ends = {0: 0.10, 1: 0.14, 2: 0.09, 3: 0.12}
    better = {r: v + 0.04 + (0.01, -0.01, 0.012, -0.014)[r] for r, v in ends.items()}
    run = make_run([(CE, ends), (FOCAL, better)])
    alone, page, _ = report(run, tmp_path / "alone")
    assert alone["level"] == 0.95 and len(alone["claims"]) == 1
    assert "of all ablations on this page" not in page.text
    # A search makes no claim, and a study of one cell neither.
    runs = [
        run,
        make_run([(CE, {0: 0.4}), (FOCAL, {0: 0.5})], kind="search", folder="search", name="search"),
        make_run([({}, {0: 0.4, 1: 0.5, 2: 0.4})], folder="single", name="single"),
    ]
    content = write_report(runs, tmp_path / "others")
    assert [study["level"] for study in content["studies"]] == [0.95, None, 0.95]
    runs += [make_run(NULL, folder=f"null-{i}", name=f"null-{i}") for i in range(9)]
    content = write_report(runs, tmp_path / "all")
    first, *_, last = content["studies"]
    assert first["level"] == last["level"] == pytest.approx(0.995)
    assert first["claims"] == [] and first["contrasts"][0]["low"] < alone["contrasts"][0]["low"]
    for name in ("report.md", "report.html"):
        text = (tmp_path / "all" / name).read_text()
        assert (
            "They hold at 99.5 %, so that those of all ablations on this page hold together at 95 %." in text
        )


@pytest.mark.parametrize("n_cells", [20, 21])
def test_species_of_a_large_ablation_are_those_of_its_best_and_its_baseline(write_run, tmp_path, n_cells):
    rates = [0.001 * n for n in range(1, n_cells + 1)]
    ends = [
        {"status": "completed", "metrics": {"val/f1_macro": lr}, "f1_per_species": {"owl": lr}}
        for lr in rates
    ]
    cells = [({"optim.lr": lr}, {0: end}) for lr, end in zip(rates, ends, strict=True)]
    _, _, out = report(write_run(tmp_path / "run", cells), tmp_path / "report")
    (row,) = csv.DictReader((out / "tables" / "species-capacity.csv").read_text().splitlines())
    assert len(row) == 2 + (n_cells if n_cells == 20 else 2)
    assert row["lr=0.001"] == "0.001" and row[f"lr={0.001 * n_cells:.4g}"] == f"{0.001 * n_cells:.3f}"


def test_a_long_table_of_the_text_names_the_file_of_its_other_rows(make_run, tmp_path):
    run = make_run([({"a": i}, {0: 0.3}) for i in range(23)])
    write_report([run], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("3 more in `tables/cells-")]
    assert (tmp_path / "out" / line.split("`")[1]).read_text().count("\n") == 25


def test_the_trials_name_the_epoch_that_their_score_is_of(make_run):
    from reports import load
    from reports.page.tables import trial_table
    from reports.statistics.analysis import results

    runs = load([make_run([({"a": i}, {0: 0.3, 1: 0.2, 2: "failed"}) for i in range(2)])])
    trials, _, _ = results(runs, runs.studies[0])
    table = trial_table(trials.assign(read_epoch=[2.0, 3.0, math.nan] * 2, best_epoch=4.0), runs.studies[0])
    assert table["read at epoch"].tolist()[:3] == ["2", "3", "–"] and "best epoch" not in table


@pytest.mark.parametrize(
    ("n", "words"), [(1, "with 2 looks in about 8 %"), (2, "with 3 looks in about 11 %")]
)
def test_a_study_that_was_extended_states_what_a_second_look_costs(make_run, n, words):
    from reports import load
    from reports.page import sentences
    from reports.study_report import study_report

    runs = load([make_run([({"a": i}, {r: 0.3 + 0.01 * r for r in range(3)}) for i in range(2)])])
    study = runs.studies[0]
    assert not any("Extended" in text for text in sentences.limits(study_report(runs, study)))
    report = study_report(runs, {**study, "n_extended": n})
    assert any("Extended" in text and words in text for text in sentences.limits(report))


@pytest.mark.parametrize(
    ("n_folds", "title"), [(5, "validation recordings, repeat 0"), (1, "validation recordings")]
)
def test_facts_that_depend_on_the_repeat_name_it(make_run, n_folds, title):
    from reports import load
    from reports.page import sentences
    from reports.study_report import study_report

    data = {"n_val": 61, "n_test": 83, "folds": {"n": n_folds, "deal": 0, "fold": 0}}
    runs = load([make_run([({"a": 1}, {0: 0.3})], data=data)])
    found = dict(sentences.facts(study_report(runs, runs.studies[0])))
    assert found[title] == "61" and found["test recordings (not opened)"] == "83"


@pytest.mark.parametrize(
    ("other", "begins"),
    [
        ({0: 0.30, 1: 0.33, 2: 0.28}, r"A difference in val/f1_macro: a=1 vs baseline, \+0\.2"),
        ({0: 0.11, 1: 0.08, 2: 0.12}, "No difference in val/f1_macro can be claimed: a=1 vs baseline, "),
    ],
)
def test_the_headline_of_one_contrast_does_not_count_it(make_run, other, begins):
    from reports import load
    from reports.page import sentences
    from reports.study_report import study_report

    runs = load([make_run([({"a": 0}, {0: 0.10, 1: 0.11, 2: 0.09}), ({"a": 1}, other)])])
    text = sentences.headline(study_report(runs, runs.studies[0]))
    assert re.match(begins, text), text


def test_the_first_screen_counts_what_a_search_completed_and_what_its_folds_validate(make_run):
    from reports import load
    from reports.page import sentences
    from reports.study_report import study_report

    folds = {"n": 5, "parts": {"fold 0": {"n": 36}, "fold 1": {"n": 31}}, "never_scored": ["owl"]}
    data = {"n_recordings": 240, "n_species": 12, "n_val": 36, "folds": folds}
    cells = [({"optim.lr": 0.1}, {0: 0.3}), ({"optim.lr": 0.2}, {0: "pruned"})]
    runs = load([make_run(cells, kind="search", data=data)])
    report = study_report(runs, runs.studies[0])
    assert sentences.headline(report).startswith("Of 2 trials (1 completed), #0")
    report.study["repeats"] = [0, 1]
    assert "Data: 240 recordings of 12 species (1 never scored), 31 to 36 validated at a time" in (
        sentences.basis(report)
    )


def test_of_a_search_by_folds_trials_are_those_of_the_first_fold(make_run):
    from reports import load
    from reports.page import sentences
    from reports.study_report import study_report

    cells = [
        ({"loss.name": "cross_entropy", "optim.lr": 0.1}, {0: 0.3, 1: 0.4, 2: 0.5}),
        ({"loss.name": "focal", "optim.lr": 0.1, "loss.gamma": 2.0}, {0: 0.2}),
        ({"loss.name": "focal", "optim.lr": 0.1, "loss.gamma": 3.0}, {0: "pruned"}),
    ]
    runs = load([make_run(cells, kind="search")])
    report = study_report(runs, runs.studies[0])
    basis, limits = sentences.basis(report), sentences.limits(report)
    assert basis[0].startswith("Trials: 2 completed, 1 pruned; 1 of them on all 3 folds, ")
    # gamma is no parameter of the first trial, and the learning rate is the same in all
    assert "Only loss.name, loss.gamma varied; other values and other settings were not tested." in limits
