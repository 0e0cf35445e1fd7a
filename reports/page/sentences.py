"""What a study found, in words: the design, the answer with its uncertainty, what the numbers do not show."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from birdnet_core.intervals import LEVEL
from birdnet_core.records.trial import LEAKAGE
from reports.page.tables import count, n_seeds, number, p_value, signed
from reports.statistics import aggregate

# What ended trials early, by the study's scheduler; "fifo" ends none.
_TERMINATION: dict[str | None, str] = {
    "asha": "ASHA",
    "hyperband": "asynchronous HyperBand",
    "median": "the median stopping rule",
}


N_UNTOLD = 4


def design(study: dict[str, Any]) -> str:
    """Return what was tried, for how long, how often, against what, and what counts as better."""
    seeds = study["seeds"]
    trained = f"{study['epochs']} epochs at most, {n_seeds(len(seeds))}"
    if study["kind"] == "search":
        rule = _TERMINATION.get(study.get("scheduler"))
        ended = f"early termination by {rule}" if rule else "no early termination"
        planned = f" of {study['n_trials']} trials" if study.get("n_trials") else ""
        return f"Search{planned}, {trained}, {ended}; {_aim(study)}."
    factors = study.get("factors") or {}
    varied = "; ".join(f"{key} {_levels(levels)}" for key, levels in factors.items())
    n_cells = len(study.get("cells") or [])
    baseline = study.get("baseline")
    against = f", compared with the baseline {aggregate.label(baseline)}" if baseline else ""
    kind = f" ({study['design']['kind']})" if study.get("design") else ""
    rule = _TERMINATION.get(study.get("scheduler"))
    early = f", with early termination by {rule}" if rule else ""
    of = f" of {varied}" if varied else ""
    return f"Ablation{kind}{of}: {n_cells} cells, {trained}{early}{against}; {_aim(study)}."


def _levels(levels: list[Any] | dict[str, Any]) -> str:
    if isinstance(levels, dict):
        log = ", evenly in the logarithm" if levels["log"] else ""
        return f"from {aggregate.show(levels['low'])} to {aggregate.show(levels['high'])}{log}"
    return f"in {{{', '.join(map(aggregate.show, levels))}}}"


def _aim(study: dict[str, Any]) -> str:
    verb = "higher" if study["direction"] == "maximize" else "lower"
    return f"{study['metric']}, {verb} is better"


def answer(
    study: dict[str, Any],
    trials: pd.DataFrame,
    cells: pd.DataFrame,
    comparisons: pd.DataFrame,
    interaction: dict[str, Any] | None,
    best: dict[str, Any] | None,
    no_best: str,
) -> str:
    """Return the result in a sentence or two, with its uncertainty."""
    if not aggregate.is_validated(study):
        return "Not validated: its trials learnt the validation split too, so only the test can judge them."
    if best is None:
        return f"No answer yet: {no_best}."
    metric = study["metric"]
    row = cells[cells["config_id"] == best["config_id"]].iloc[0]
    if best["low"] is None:
        how = "one seed, so no interval and no way to tell it from chance"
    else:
        how = f"95 % interval {number(best['low'])} to {number(best['high'])}, {n_seeds(best['n'])}"
    of = f"{len(cells)} cells" if study["kind"] == "ablation" else f"{len(trials)} trials"
    name = row["label"]
    if study["kind"] == "search" and row["factors"]:
        name = f"trial {name} ({aggregate.label(row['factors'])})"
    text = f"Best of {of} ({aggregate.status_counts(trials)}): {name} with {metric} "
    text += f"{number(best['mean'])} ({how})."
    mine = [c for _, c in comparisons.iterrows() if c["cell"] == row["factors"]]
    if mine:
        text += " " + _difference_sentence(mine[0])
    elif len(comparisons) and study.get("baseline"):
        text += " It is the baseline itself."
    others = _other_differences(comparisons.loc[[c != row["factors"] for c in comparisons["cell"]]])
    return " ".join(filter(None, [text, others, interaction_effect(interaction, study)]))


def confirmed_choice(best: dict[str, Any]) -> str:
    """Return what a race on fresh seeds came to (`confirmation.confirmed`), and what the search had said."""
    metric, before = best["metric"], best["confirmed"]["before"]
    text = f"{aggregate.label(best['factors'])} with {metric} {number(best['mean'])}"
    if best["low"] is not None:
        text += f" (95 % interval {number(best['low'])} to {number(best['high'])}, {n_seeds(best['n'])})"
    return (
        f"{text}. Before, with {n_seeds(before['n'])} of {best['study']}, it had {number(before['mean'])}. "
        f"{best['how_sure']}"
    )


def _other_differences(comparisons: pd.DataFrame) -> str:
    """Return which cells beside the best differ from the baseline by more than the seeds explain."""
    told = comparisons[comparisons["p_holm"] < 1 - LEVEL]
    if told.empty:
        return ""
    named = ", ".join(
        f"{row['label']} {signed(row['diff'])} (p {p_value(row['p_holm'])} after Holm)"
        for _, row in told.iterrows()
    )
    return f"Other differences to the baseline that are more than the seeds explain: {named}."


def _difference_sentence(comparison: pd.Series[Any]) -> str:
    if math.isnan(comparison["diff"]):
        return f"Against the baseline: {comparison['note']}."
    diff = f"Its difference to the baseline is {signed(comparison['diff'])}"
    if math.isnan(comparison["p_holm"]):
        return f"{diff} ({comparison['note']})."
    verdict = (
        "more than the seeds explain"
        if comparison["p_holm"] < 1 - LEVEL
        else "not distinguishable from the spread of the seeds"
    )
    interval = f"{signed(comparison['low'])} to {signed(comparison['high'])}"
    return f"{diff} ({interval}, p {p_value(comparison['p_holm'])} after Holm): {verdict}."


def interaction_effect(interaction: dict[str, Any] | None, study: dict[str, Any]) -> str:
    """Return the interaction of a 2x2 design with its interval; empty for another design."""
    if interaction is None:
        return ""
    a, b = interaction["factors"]
    (_, _), (b0, b1) = interaction["levels"]
    if math.isnan(interaction["diff"]):
        return f"The interaction of {a} and {b} cannot be told: {interaction['note']}."
    text = (
        f"Changing {a} moves {study['metric']} by {signed(interaction['diff'])} more with "
        f"{aggregate.show(b1)} than with {aggregate.show(b0)}"
    )
    if math.isnan(interaction["p"]):
        return f"{text} ({interaction['note']})."
    open_question = "" if interaction["p"] < 1 - LEVEL else ": the interaction could be chance"
    return (
        f"{text} ({signed(interaction['low'])} to {signed(interaction['high'])}, "
        f"p {p_value(interaction['p'])}){open_question}."
    )


def main_effects(effects: pd.DataFrame) -> str:
    """Return which main effects the seeds do not explain; empty where there are none to tell of."""
    if not effects["diff"].notna().any():
        return ""
    told = effects[effects["p_holm"] < 1 - LEVEL]
    if not effects["p"].notna().any():
        largest = effects.iloc[int(effects["diff"].abs().argmax())]
        text = f"Largest main effect: {largest['factor']}, {signed(largest['diff'])} ({largest['note']})."
    elif told.empty:
        text = "No main effect is distinguishable from the spread of the seeds."
    else:
        named = ", ".join(f"{row['factor']} {signed(row['diff'])}" for _, row in told.iterrows())
        text = f"Main effects that are more than the seeds explain: {named}."
    if any(effects["aliases"]):
        text += " Any of them may be owed to an interaction that it is aliased with."
    return text


def rank_correlations(correlations: pd.DataFrame, metric: str) -> str:
    """Return which factors of a screening design go with the metric; empty where that cannot be told."""
    if not correlations["p"].notna().any():
        return ""
    told = correlations[correlations["p_holm"] < 1 - LEVEL]
    if told.empty:
        return f"As a screen: no factor's rank correlation with {metric} is distinguishable from chance."
    named = ", ".join(f"{row['factor']} {signed(row['rho'], '{:+.2f}')}" for _, row in told.iterrows())
    return f"As a screen: {metric} goes with {named} (rank correlation, Holm)."


def importances(frame: pd.DataFrame) -> str:
    """Return which parameter of a search matters most, and how sure that is; empty where none is told."""
    told = frame[frame["importance"].notna()]
    if told.empty:
        return ""
    first, others = told.iloc[0], told.iloc[1:]
    n_near = int((others["high"] >= first["low"]).sum())
    share = f"importance {first['importance']:.2f} ({first['low']:.2f} to {first['high']:.2f} over resamples)"
    at = f"for {first['metric']} at epoch {count(first['epoch'])}"
    if n_near:
        return (
            f"Which of {len(told)} parameters mattered most {at} is not sure: {first['parameter']} comes "
            f"first, with {share}, but the intervals of {n_near} of {len(others)} others reach into its own."
        )
    return f"Of {len(told)} parameters {first['parameter']} mattered most {at}: {share}, above all others."


def importance_untold(frame: pd.DataFrame) -> list[str]:
    """Return why no parameter of a search has an importance; no sentence where one has."""
    if frame.empty or frame["importance"].notna().any():
        return []
    return [f"The importance of parameters is not told: {'; '.join(dict.fromkeys(frame['note']))}."]


def importance_basis(frame: pd.DataFrame) -> str:
    """Return which values the importance of parameters rests on; empty where there is none."""
    told = frame[frame["importance"].notna()]
    if told.empty:
        return ""
    row = told.iloc[0]
    n_all = row["n_trials"] + row["n_left_out"]
    return (
        f"All trials are compared at epoch {count(row['epoch'])}, the latest that half of them reached: "
        f"{count(row['n_trials'])} of {count(n_all)} have {row['metric']} there. The best "
        f"{count(row['n_top'])} are set against all."
    )


def trends(frame: pd.DataFrame) -> str:
    """Return what numeric factors do to the metric and to rare species; empty where that cannot be told.

    A metric is said to rise or fall only where the seeds do not explain it.
    """
    known = frame[frame["diff"].notna()]
    ranges = pd.Series([f"{levels[0]} to {levels[-1]}" for levels in known["levels"]], known.index, dtype=str)
    out = []
    for _, rows in known.groupby(["factor", ranges], sort=False):
        factor, scale, levels = rows[["factor", "scale", "levels"]].iloc[0]
        over = f"the logarithm of {factor}" if scale == "log" else str(factor)
        ends = f"from {aggregate.show(levels[0])} to {aggregate.show(levels[-1])}"
        changes = "; ".join(_changes(rows[rows["term"] == "linear"]))
        out.append(f"Along a straight line over {over}, {ends}: {changes}.")
        bends = rows[(rows["term"] == "quadratic") & (rows["p_holm"] < 1 - LEVEL)]
        if len(bends):
            named = "; ".join(
                f"{_of_group(row)} by {signed(row['diff'])} ({_sureness(row)})" for _, row in bends.iterrows()
            )
            out.append(f"In the middle of that range it leaves the straight line between its ends: {named}.")
    return " ".join(out)


def _changes(lines: pd.DataFrame) -> list[str]:
    """Return what is told of linear trends; of more than `N_UNTOLD` that are not told, their number."""
    is_told = lines["p_holm"] < 1 - LEVEL
    out = [
        f"{_of_group(row)} {'rises' if row['diff'] > 0 else 'falls'} by {number(abs(row['diff']))} "
        f"({_sureness(row)})"
        for _, row in lines[is_told].iterrows()
    ]
    untold = lines[lines["p_holm"].notna() & ~is_told]
    if len(untold):
        named = f"{len(untold)} of {len(lines)} trends"
        if len(untold) <= N_UNTOLD:
            named = ", ".join(
                f"{_of_group(row)} {signed(row['diff'])} ({_sureness(row)})" for _, row in untold.iterrows()
            )
        out.append(f"not distinguishable from the spread of the seeds: {named}")
    for note, untested in lines[lines["p_holm"].isna()].groupby("note", sort=False):
        named = ", ".join(f"{_of_group(row)} {signed(row['diff'])}" for _, row in untested.iterrows())
        out.append(f"{named} ({note})")
    return out


def _of_group(row: pd.Series[Any]) -> str:
    return f"{row['metric']} with {row['group']}" if row["group"] else str(row["metric"])


def _sureness(row: pd.Series[Any]) -> str:
    return f"{signed(row['low'])} to {signed(row['high'])}, p {p_value(row['p_holm'])} after Holm"


def budget(costs: dict[str, float | None]) -> str:
    """Return what the run has cost against its budget; `costs` is of `resources.against_budget`."""
    parts = []
    for key, unit in (
        ("hours", "hours of wall time"),
        ("gpu_hours", "GPU-hours"),
        ("cpu_hours", "CPU-hours"),
    ):
        usage, limit = costs[key] or 0.0, costs.get(f"budget_{key}")
        if limit is not None:
            parts.append(f"{usage:.3g} of {limit:g} {unit} ({usage / limit:.0%} of the budget)")
        elif usage:
            parts.append(f"{usage:.3g} {unit}")
    limits = any(costs[key] is not None for key in ("budget_hours", "budget_gpu_hours"))
    text = f"All studies of the run folder together took {', '.join(parts) or 'no time yet'}"
    return f"{text}." if limits else f"{text}; no budget was set."


def warnings(study: dict[str, Any], cells: pd.DataFrame) -> list[str]:
    """Return what makes scores of a study not hold, or is left out of them, to be read before any of them."""
    out = [note for note in (study.get("data") or {}).get("notes", []) if note.startswith(LEAKAGE)]
    notes = study.get("load_notes", [])
    leaky = cells["is_leaky"].astype(bool)
    if out and leaky.any() and not leaky.all():
        out.append(
            f"This concerns {', '.join(cells.loc[leaky, 'label'])}. The other cells are split, and scored, "
            "by recording, so that a difference to them is of leakage and of scoring clips one by one."
        )
    return [*out, *notes]


def caveats(study: dict[str, Any], cells: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """Return what the numbers do not show, each as a sentence."""
    out = []
    completed = cells[cells["n"] > 0]
    single = int((completed["n"] == 1).sum())
    if single:
        out.append(
            f"{single} of {len(cells)} rows with one seed only: no interval, and a gap between them may be "
            "chance."
        )
    lost = int(cells["n_failed"].sum())
    if lost:
        out.append(f"{_trials(lost)} failed, diverged or killed: no part of a mean, and listed by name.")
    if other := int(cells["n_other"].sum()):
        out.append(
            f"{_trials(other)} ran out of GPU memory and completed with smaller micro-batches, which under "
            "batch norm is other training: no part of a mean, and not compared."
        )
    for column, what in (("n_running", "not ended"), ("n_missing", "planned and never started")):
        if n := int(cells[column].sum()):
            out.append(f"{_trials(n)} {what}.")
    marked = [str(name) for name in cells.loc[cells["unequal_epochs"].astype(bool), "label"]]
    if marked:
        out.append(f"Trained unequal epochs, so not compared: {', '.join(marked)}.")
    done = trials[trials["status"] == "completed"]
    if len(done) and (done["epochs"] < study["epochs"]).any():
        out.append(
            f"Completed trials trained {done['epochs'].min()} to {done['epochs'].max()} of "
            f"{study['epochs']} epochs; each is read at its best epoch."
        )
    if study["metric"] in done and (n := int(done[study["metric"]].isna().sum())):
        out.append(f"{_trials(n)} completed without a finite {study['metric']}: no part of a mean.")
    reused = int(trials["reused"].sum())
    if reused:
        out.append(f"{_trials(reused)} trained for another study of the run folder, and used again.")
    planned = [cell["config_id"] for cell in study.get("cells") or []]
    if len(set(planned)) < len(planned):
        out.append(
            f"{len(planned)} cells are only {len(set(planned))} configs: equal rows are the same trials, and "
            "a difference of zero between them is no finding."
        )
    monitors = {config.get("training", {}).get("monitor", study["metric"]) for config in done["config"]}
    if monitors - {study["metric"]}:
        chosen_by = ", ".join(sorted(monitors))
        out.append(f"The best epoch of a trial was chosen by {chosen_by}, not by {study['metric']} alone.")
    out.append(
        "Scores are of the validation split, which also chose each trial's best epoch and the best config: "
        "they are too high on average. This report does not open the test split."
    )
    if (completed["n"] > 1).any():
        out.append(
            "Intervals and p values cover the randomness of training on this one split. They say nothing "
            "about other recordings, sites or splits."
        )
    out += [f"On the split: {note}." for note in (study.get("data") or {}).get("notes", [])]
    factors = study.get("factors") or (trials["factors"].iloc[0] if len(trials) else {})
    if factors:
        out.append(
            f"Only {', '.join(factors)} varied. Everything else stayed as it was, and no other value "
            "was tested."
        )
    return out


def facts(study: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of the data and its split, as pairs of a title and a value."""
    data = study.get("data") or {}
    scored = data.get("scored", "recordings")
    titles = {
        "name": "data", "data_id": "data id", "split_id": "split id", "n_recordings": "recordings",
        "n_species": "species", "n_train": f"training {scored}", "n_val": f"validation {scored}",
        "n_test": f"test {scored} (not opened)", "n_skipped": "recordings skipped",
    }  # fmt: skip
    out = [
        (title, count(data[key]) if isinstance(data[key], int) else str(data[key]))
        for key, title in titles.items()
        if data.get(key) is not None
    ]
    if data.get("grouped_by"):
        out.append(("never in two splits", ", ".join(data["grouped_by"])))
    strata = data.get("strata") or {}
    if strata:
        out.append(
            ("species by stratum", ", ".join(f"{len(members)} {name}" for name, members in strata.items()))
        )
    counts = data.get("train_counts") or {}
    if counts:
        rarest, commonest = min(counts.values()), max(counts.values())
        out.append((f"training {scored} a species", f"{rarest} (rarest) to {commonest} (commonest)"))
    return out


def provenance(study: dict[str, Any], trials: pd.DataFrame) -> list[tuple[str, str]]:
    """Return where the numbers come from and what they cost, as pairs of a title and a value."""
    source = study.get("provenance") or {}
    versions = source.get("versions") or {}
    devices = sorted({str(p["device"]) for p in trials["provenance"] if p.get("device")})
    usage = trials.loc[~trials["reused"].astype(bool), "seconds"].sum() / 3600
    rows = {
        "run folder": study["run"],
        "created": study.get("created"),
        "command": source.get("command"),
        "git commit": source.get("git_commit"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "devices": ", ".join(devices),
        "trial hours, failed ones included": f"{usage:.3g}",
        "trials": aggregate.status_counts(trials),
    }
    return [(key, str(value)) for key, value in rows.items() if value]


def _trials(n: int) -> str:
    return "1 trial" if n == 1 else f"{n} trials"
