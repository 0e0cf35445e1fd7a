"""Every sentence of the page: the design, the answer with its uncertainty, notes on tables, and caveats.

A caveat is written once, here; HTML, Markdown, captions and the model card use it.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from birdnet_core.intervals import LEVEL
from birdnet_core.records.bounds import constraints_of
from birdnet_core.records.seen import seen_caution, seen_text, validated_splits
from birdnet_core.records.trial import LEAKAGE
from reports.page.formats import count, interval, n_of, number, objective, signed, signed_interval, time_unit
from reports.selection import gates
from reports.selection.choice import FRONT_RULES
from reports.statistics import aggregate
from reports.statistics.analysis import repeats_for
from reports.statistics.audits import Audits
from reports.statistics.front import objectives_of
from reports.study_report import StudyReport

OVER_REPEATS = "95 % interval over repeats, from three on"
OPTIMISTIC = "The best config was chosen by these validation scores: its own is too high on average."
CELLS = (
    "Of completed trials, each read at the epoch at which the smoothed mean of the other repeats of its cell "
    "is best. Accuracy "
    "and F1 are of the recordings of all repeats of a deal together, other metrics means over repeats; "
    f"{OVER_REPEATS}, for one cell alone: cells are compared by their differences. Failed and pruned trials "
    "are counted and enter no score. Times are of one completed trial."
)
TRIALS = (
    "Of completed trials, each read at its own best epoch, which is too high on average, most where a curve "
    "is noisy: compare the learning curves. Failed and pruned trials are counted and enter no score. Times "
    "are of one trial."
)
SPECIES = (
    "Of the recordings of all folds of a deal together, means over deals; a species without validation "
    "recordings has no row."
)
SPECIES_OF_RECORDS = (
    "Means over repeats, each at its own best epoch, as the trials' records have them: the run folder lacks "
    "the predictions of some."
)
CONTRASTS = (
    "All rows are one family: the intervals hold together, and p is adjusted for all of them. A difference "
    "is one if its interval excludes 0. Errors are those of a linear model of cells and repeats, "
    "with the recordings that each repeat validated. Trends: linear, the change along a straight line from "
    "the first level to the last; curved, how far the curve lies above that line in the middle."
)
FRONT = (
    "No other config is at least as good in every objective and better in one. Distance: from the best value "
    "of every objective, in units of the range of the front; the rule ideal chooses the least."
)
LEVELS = f"Means over completed trials; {OVER_REPEATS}."
GATES = (
    "PASS: the whole interval of the best cell reaches the target. FAIL: none of it does. GO: all pass. "
    "NO-GO: one fails. INVESTIGATE: otherwise."
)
RESOURCES = (
    "Wall time is of all trials, including those that did not complete; GPU and CPU time are wall time times "
    "the GPUs and CPUs of a trial. At full length: the epochs of all trials if none had "
    "been stopped or failed."
)
PROGRESSION = "Means over the completed trials that reached the epoch (n)."
GAP = (
    "Gap: train/accuracy minus val/accuracy of the same epoch, in percentage points. Training accuracy is of "
    "clips as augmented: augmentation lowers it, and the gap with it, even if validation does not improve."
)
N_NAMED = 4  # differences that the answer names
DIFFERENCES = (0.05, 0.02)  # in a score, of which the answer says what they would take

# The rule that stops trials early, by the study's scheduler; "fifo" stops none.
_TERMINATION: dict[str | None, str] = {
    "asha": "ASHA",
    "hyperband": "asynchronous HyperBand",
    "median": "the median stopping rule",
}


def design(study: dict[str, Any]) -> str:
    """Return what was varied, for how many epochs and repeats, the baseline, and which way is better."""
    n = len(study["repeats"])
    repeats = f"up to {n} folds a config" if aggregate.is_folded(study) else n_of(n, "repeat")
    trained = f"{n_of(study['epochs'], 'epoch')} at most, {repeats}"
    aim = f"{study['metric']}, {'higher' if study['direction'] == 'maximize' else 'lower'} is better"
    rule = _TERMINATION.get(study.get("scheduler"))
    if len(study.get("also") or ()):
        aim = f"objectives {', '.join(objectives_of(study))}"
    if study["kind"] == "search":
        ended = f"early termination by {rule}" if rule else "no early termination"
        planned = f" of {study['n_trials']} trials" if study.get("n_trials") else ""
        return f"Search{planned}, {trained}, {ended}; {aim}."
    factors = study.get("factors") or {}
    varied = "; ".join(f"{key} {_levels(levels)}" for key, levels in factors.items())
    n_cells = len(study.get("cells") or [])
    baseline = study.get("baseline")
    against = f", compared with the baseline {aggregate.label(baseline)}" if baseline else ""
    kind = f" ({study['design']['kind']})" if study.get("design") else ""
    early = f", with early termination by {rule}" if rule else ""
    of = f" of {varied}" if varied else ""
    return f"Ablation{kind}{of}: {n_cells} cells, {trained}{early}{against}; {aim}."


def _levels(levels: list[Any] | dict[str, Any]) -> str:
    if isinstance(levels, dict):
        log = ", evenly in the logarithm" if levels["log"] else ""
        return f"from {aggregate.show(levels['low'])} to {aggregate.show(levels['high'])}{log}"
    return f"in {{{', '.join(map(aggregate.show, levels))}}}"


def answer(report: StudyReport) -> str:
    """Return the result of a study in a few sentences, with its uncertainty."""
    if not aggregate.is_validated(report.study):
        return (
            "Not validated: these trials also trained on the validation split, so only the test split can "
            "evaluate them."
        )
    if len(report.front):
        return " ".join(filter(None, [front(report), importance(report.importance)]))
    if report.best is None:
        return f"No answer yet: {report.no_best}."
    parts = [
        claims(report),
        _best(report, report.best),
        rank_correlations(report.rank_correlations, report.metric),
        early_stopping(report.audits, report.metric),
        importance(report.importance),
    ]
    return " ".join(filter(None, parts))


def headline(report: StudyReport) -> str:
    """Return the result of a study in a sentence or two: the largest difference, and what may be the best."""
    if len(report.front) and aggregate.is_validated(report.study):
        return front(report)
    if report.best is None or not aggregate.is_validated(report.study):
        return answer(report)
    metric, best = report.metric, report.best
    row = report.cells[report.cells["config_id"] == best["config_id"]].iloc[0]
    score = number(best["mean"], "{:.3f}")
    if best["low"] is not None:
        score += f" (95 % interval {interval(best, '{:.3f}')})"
    if report.analysis is None or report.analysis.contrasts.empty:
        of = f"{len(report.sampled)} trials" if report.kind == "search" else f"{len(report.cells)} cells"
        n_scored = int((report.cells["n"] > 0).sum())
        of += f" ({n_scored} completed)" if n_scored < len(report.cells) else ""
        repeats = "one repeat each" if best["n"] == 1 else n_of(best["n"], "repeat")
        words = [value for value in best["factors"].values() if isinstance(value, str)]
        name = f"{row['label']} ({', '.join(words)})" if report.kind == "search" and words else row["label"]
        too_high = "The best of several is too high on average."
        if best["low"] is None:
            too_high = f"Its lead may be chance: {too_high[0].lower()}{too_high[1:]}"
        elif report.analysis is not None and len(best["not_worse"]) > 1:
            n = len(report.analysis.best)
            with_all = " with all folds" if report.kind == "search" else ""
            too_high = f"{len(best['not_worse'])} of the {n}{with_all} may be the best. {too_high}"
        return f"Of {of}, {name} has the best {metric}: {score}, {repeats}. {too_high}"
    rows = report.analysis.contrasts
    tested = rows[rows["low"].notna()]
    standing = _standing(best, len(report.analysis.best))
    if tested.empty:
        why = next(filter(None, rows["note"]), "no contrast could be computed")
        return f"No verdict on a difference: {why}. Highest so far: {row['label']}, {metric} {score}."
    found = report.analysis.claims
    compared = found if len(found) else tested
    first = compared.iloc[int(compared["estimate"].abs().argmax())]
    largest = (
        f"{first['label']}, {signed(first['estimate'], '{:+.3f}')} "
        f"({percent_of(report.analysis.level)} interval {signed_interval(first, '{:+.3f}')})"
    )
    is_one = len(tested) == 1
    if found.empty:
        of = ":" if is_one else f", of {n_of(len(tested), 'contrast')}. The largest:"
        return f"No difference in {metric} can be claimed{of} {largest}. {standing}"
    verb = "is a difference" if len(found) == 1 else "are differences"
    claimed = (
        f"A difference in {metric}: {largest}."
        if is_one
        else (f"{len(found)} of {n_of(len(tested), 'contrast')} in {metric} {verb}; the largest: {largest}.")
    )
    return f"{claimed} Chosen: {row['label']}, {score}. {standing}"


def front(report: StudyReport) -> str:
    """Return how many configs are on the Pareto front, its ends, and how one of them is chosen."""
    names = objectives_of(report.study)
    on_front = report.front[report.front["is_on_front"]]
    ends = [
        f"{row['label']} ({', '.join(f'{name} {objective(row[name], name)}' for name in names)})"
        for _, row in (on_front.iloc[[0]] if len(on_front) == 1 else on_front.iloc[[0, -1]]).iterrows()
    ]
    is_or_are = "is" if len(on_front) == 1 else "are"
    return (
        f"Of {len(report.sampled)} trials, {len(on_front)} {is_or_are} on the Pareto front of "
        f"{' and '.join(names)}: {' to '.join(ends)}. No config is chosen; `birdtune best` with --rule "
        f"{' or '.join(FRONT_RULES)} chooses one of the front. Scores of the best of several are too high on "
        "average."
    )


def repeated_search(searches: pd.DataFrame) -> str:
    """Return how much the best value of a search varies over its seeds."""
    best = searches["best"]
    return (
        f"{len(searches)} runs of one search with different seeds, of the sampler and of training, found "
        f"a best {searches['metric'].iloc[0]} of {number(best.mean())} on average (std {number(best.std())}, "
        f"{number(best.min())} to {number(best.max())}). All are the best of several, and too high on "
        "average."
    )


def _standing(best: dict[str, Any], n: int) -> str:
    """Return how many cells may be the best; empty where that is not known."""
    in_set = len(best["not_worse"])
    if in_set == 1:
        return f"It is the best of {n} at {percent_of(LEVEL)}."
    return f"{in_set} of {n} cells may be the best." if in_set else ""


def basis(report: StudyReport) -> list[str]:
    """Return what the answer rests on, in a few words each: trials, data, gates, and what is not known."""
    study, data = report.study, report.study.get("data") or {}
    if aggregate.is_folded(study):
        trials = aggregate.status_counts(report.sampled)
        n_whole = int(aggregate.has_all_repeats(report.cells, study).sum())
        repeats = f"{n_whole} of them on all {len(study['repeats'])} folds"
    else:
        trials = aggregate.status_counts(report.trials)
        repeats = f"{n_of(len(study['repeats']), 'repeat')} on {_folds(study)}"
    out = [f"Trials: {trials}; {repeats}, {n_of(study['epochs'], 'epoch')} at most"]
    if facts := study.get("warm_start"):
        trained = f" that trained {facts['epochs']} epochs" if facts["epochs"] != study["epochs"] else ""
        other = "" if facts["data_id"] == data.get("data_id") else " on other recordings"
        out.append(
            f"Warm start: the best {n_of(len(facts['configs']), 'config')} of {facts['study']} in "
            f"{facts['run']}{trained}{other}, trained first"
        )
    if n := study.get("n_enqueued"):
        out.append(f"{n_of(n, 'config')} given and trained first")
    if collection := _collection(data):
        out.append(f"Data: {collection}{_validated(study)}")
    if constraints := constraints_of(study):
        n = int(report.cells["is_infeasible"].sum())
        n_untrained = int(report.cells["n_infeasible"].sum())
        text = f"Constraints: {', '.join(map(str, constraints))}; {n} of {len(report.cells)} break one"
        out.append(f"{text}, {n_untrained} of them not trained" if n_untrained else text)
    if decision := gates.decision(report.gate_results):
        out.append(f"Gates: {decision}")
    unknown = [note.partition(": ")[0] for note in data.get("notes", []) if not note.startswith(LEAKAGE)][:1]
    out.append("; ".join(["Not known: the score on the test split, which is not opened", *unknown]))
    return out


def _folds(study: dict[str, Any]) -> str:
    """Return ``one validation split``, ``5 folds`` or, of fewer repeats, ``3 of 5 folds``."""
    n, n_repeats = ((study.get("data") or {}).get("folds") or {}).get("n", 1), len(study["repeats"])
    if n == 1:
        return "one validation split"
    return f"{n_repeats} of {n} folds" if n_repeats < n else f"{n} folds"


def _validated(study: dict[str, Any]) -> str:
    """Return how many species are never scored, and how many recordings a repeat validates."""
    data = study.get("data") or {}
    folds = data.get("folds") or {}
    parts = folds.get("parts") or {}
    named = [f"fold {repeat % folds.get('n', 1)}" for repeat in study["repeats"]]
    sizes = [parts[name]["n"] for name in named if name in parts] or [data.get("n_val") or 0]
    never = f" ({len(folds['never_scored'])} never scored)" if folds.get("never_scored") else ""
    n = f"{count(min(sizes))} to {count(max(sizes))}" if min(sizes) < max(sizes) else count(min(sizes))
    return never + (f", {n} validated at a time" if max(sizes) else "")


def _collection(data: dict[str, Any]) -> str:
    """Return ``403 recordings of 75 species``; empty where neither is known."""
    known = [key for key in ("recordings", "species") if data.get(f"n_{key}")]
    return " of ".join(f"{count(data[f'n_{key}'])} {key}" for key in known)


def methods(report: StudyReport) -> str:
    """Return a sentence or more for the methods of a paper, with numbers and sources."""
    study, data = report.study, report.study.get("data") or {}
    versions = (study.get("provenance") or {}).get("versions") or {}
    made = ", ".join(
        f"{name} {versions[name]}" for name in ("birdtune", "torch", "optuna") if name in versions
    )
    of = f" on {_collection(data)}" if _collection(data) else ""
    apart = f", split by {', '.join(data['grouped_by'])}" if data.get("grouped_by") else ""
    out = [
        f"We trained {n_of(len(report.trials), 'model')} for at most {n_of(study['epochs'], 'epoch')}{of}"
        f"{apart}{f' ({made})' if made else ''}, validated on {_folds(study)}; the test split was not used."
    ]
    if report.kind == "search":
        rule = _TERMINATION.get(study.get("scheduler"))
        out.append(
            f"The search sampled {count(len(report.cells))} configurations"
            f"{f', with early termination by {rule}' if rule else ''}, and ranked them by {report.metric}."
        )
        if aggregate.is_folded(study):
            out.append(
                "The best configurations of the first fold were trained on the further folds. Those with all "
                "folds were ranked, by the predictions of all folds together (Forman and "
                "Scholz 2010)."
            )
    else:
        out.append(
            f"We compared {n_of(len(report.cells), 'configuration')} with "
            f"{n_of(len(study['repeats']), 'repeat')} each by {report.metric}, of the predictions of all "
            "folds together (Forman and Scholz 2010). Each training was read at the epoch at which the "
            "smoothed mean of the other repeats of its configuration was best."
        )
    if report.analysis is not None and len(report.analysis.claims) + len(report.analysis.contrasts):
        out.append(
            f"Differences have simultaneous {percent_of(report.analysis.level)} intervals from a linear "
            "model of configurations and repeats, adjusted for all contrasts; those that may be the best "
            "follow from multiple comparisons with the best (Hsu 1984)."
        )
    return " ".join(out)


def paper_note(report: StudyReport) -> str:
    """Return what the table for a paper holds."""
    note = f"{report.metric}, {OVER_REPEATS}; n: completed repeats."
    if report.analysis is not None and len(report.analysis.contrasts):
        level = percent_of(report.analysis.level)
        note += f" Differences from the baseline, with simultaneous {level} intervals."
    return note


def claims(report: StudyReport) -> str:
    """Return the differences that hold, the largest first, or that none does and what would show one."""
    if report.analysis is None or report.analysis.contrasts.empty:
        return ""
    rows, found = report.analysis.contrasts, report.analysis.claims
    tested = int(rows["low"].notna().sum())
    if not tested:
        why = next(filter(None, rows["note"]), "no contrast could be computed")
        return f"No verdict on a difference: {why}.{_effort(report)}"
    if found.empty:
        of = n_of(tested, "contrast")
        return f"No difference in {report.metric} can be claimed, of {of}.{_effort(report)}"
    order = found["estimate"].abs().sort_values(ascending=False, kind="stable").index
    named = "; ".join(
        f"{row['label']}: {signed(row['estimate'], '{:+.3f}')} ({signed_interval(row, '{:+.3f}')})"
        for _, row in found.loc[order[:N_NAMED]].iterrows()
    )
    more = f"; {len(found) - N_NAMED} more below" if len(found) > N_NAMED else ""
    aliased = any(any(aliases) for aliases in found["aliases"])
    alias = " A main effect may be due to an interaction that it is aliased with." if aliased else ""
    return (
        f"{len(found)} of {n_of(tested, 'contrast')} in {report.metric} "
        f"{'is a difference' if len(found) == 1 else 'are differences'}, by intervals that hold together at "
        f"{percent_of(report.analysis.level)}: {named}{more}.{alias}"
    )


def contrasts_note(level: float) -> str:
    """Return how to read the table of contrasts, whose intervals hold together at `level`."""
    if level == LEVEL:
        return CONTRASTS
    return (
        f"{CONTRASTS} They hold at {percent_of(level)}, so that those of all ablations on this page hold "
        f"together at {percent_of(LEVEL)}."
    )


def percent_of(level: float) -> str:
    """Return 95 % or 97.5 %."""
    return f"{100 * level:.3g} %"


def _effort(report: StudyReport) -> str:
    """Return how many repeats a difference that matters would take; empty where that is unknown."""
    assert report.analysis is not None
    if report.analysis.rough is None:
        return ""
    found = list(zip(DIFFERENCES, repeats_for(report.analysis, DIFFERENCES), strict=True))
    known = [f"{n_of(n, 'repeat')} for one of {difference:g}" for difference, n in found if n is not None]
    out = []
    if known:
        out.append(
            f"By the spread of these repeats, a difference of two cells would take about {', '.join(known)}"
        )
    out += [
        f"no number of repeats would show one of {d:g}, which takes more recordings"
        for d, n in found
        if n is None
    ][:1]
    text = "; ".join(out)
    return f" {text[0].upper()}{text[1:]}." if text else ""


def _best(report: StudyReport, best: dict[str, Any]) -> str:
    row = report.cells[report.cells["config_id"] == best["config_id"]].iloc[0]
    is_search = report.kind == "search"
    of = f"{len(report.sampled)} trials" if is_search else f"{len(report.cells)} cells"
    name = row["label"]
    if is_search and row["factors"]:
        name = f"trial {name} ({aggregate.label(row['factors'])})"
    how = n_of(best["n"], "repeat")
    if best["low"] is not None:
        how = f"95 % interval {interval(best, '{:.3f}')}, {how}"
    return (
        f"Of {of} ({aggregate.status_counts(report.sampled)}), {name} is chosen, with {report.metric} "
        f"{number(best['mean'], '{:.3f}')} ({how}). {best['how_sure']}"
    )


def rank_correlations(correlations: pd.DataFrame, metric: str) -> str:
    """Return which factors of a screening design go with the metric; empty where that is unknown."""
    known = correlations[correlations["rho"].notna()]
    if known.empty:
        return ""
    order = known["rho"].abs().sort_values(ascending=False, kind="stable").index[:N_NAMED]
    named = ", ".join(
        f"{row['factor']} {signed(row['rho'], '{:+.2f}')} ({row['note'] or signed_interval(row, '{:+.2f}')})"
        for _, row in known.loc[order].iterrows()
    )
    return f"Screening: rank correlations with {metric} are {named}; test them in a design of their own."


def correlations_note(metric: str) -> str:
    """Return how to read the table of rank correlations."""
    return (
        f"Spearman's correlation of a factor's value with the mean of {metric} over the cells; interval of "
        "Bonett and Wright (2000), of each factor alone. It finds monotonic relations only: a factor that is "
        "best in the middle has none."
    )


def early_stopping(audits: Audits | None, metric: str) -> str:
    """Return what early stopping saved in a search, and what the audited trials say that it cost."""
    if audits is None:
        return ""
    parts = [
        f"{audits.rule} ended {n_of(audits.n_ended, 'trial')} early, which saved "
        f"{audits.epochs_saved:,} epochs ({audits.share_saved:.0%})."
    ]
    if audits.n_spared:
        parts.append(
            f"It let {audits.n_spared} train on past an epoch at which they were behind, since epochs so "
            "early did not clearly predict the end at that time."
        )
    if not audits.n_audited:
        parts.append("No trial that it would have ended was audited: what that cost is not known.")
        return " ".join(parts)
    of_all = f"{number(100 * audits.wrong_low, '{:.0f}')} to {number(100 * audits.wrong_high, '{:.0f}')} %"
    parts.append(
        f"Of {n_of(audits.n_audited, 'audited trial')}, which it let train on, {audits.n_wrong} came to be "
        f"among the best third (of all that it ended, {of_all}); the best of them reached {metric} "
        f"{number(audits.best_audited)}, the search {number(audits.best)}."
    )
    if math.isfinite(audits.low):
        found = (
            "early epochs predict the end here"
            if audits.is_predictive
            else "it is not clear that early epochs predict the end here, so that good configs may have been "
            "ended; a search with the scheduler fifo ends none"
        )
        parts.append(
            f"The rank correlation of the trials by {audits.rung_metric} up to epoch {audits.first_rung} "
            f"and by {metric} at the end is "
            f"{signed(audits.correlation, '{:+.2f}')} ({signed(audits.low, '{:+.2f}')} to "
            f"{signed(audits.high, '{:+.2f}')}): {found}."
        )
    return " ".join(parts)


def importance(importances: pd.DataFrame) -> str:
    """Return the most important parameter of a search, and how certain that is; empty where unknown."""
    known = importances[importances["importance"].notna()]
    if known.empty:
        return ""
    first, others = known.iloc[0], known.iloc[1:]
    n_near = int((others["high"] >= first["low"]).sum())
    order = "above all others"
    if n_near:
        order = f"but the intervals of {n_near} of {len(others)} others overlap its own"
    return (
        f"Most important of {len(known)} parameters for {first['metric']} at epoch {count(first['epoch'])}: "
        f"{first['parameter']}, importance {first['importance']:.2f} ({interval(first, '{:.2f}')} over "
        f"resamples), {order}."
    )


def importance_note(importances: pd.DataFrame) -> str:
    """Return how to read the table of importance; empty where no importance is known."""
    known = importances[importances["importance"].notna()]
    if known.empty:
        return ""
    row = known.iloc[0]
    return (
        f"All trials are compared at epoch {count(row['epoch'])}, the latest that half of them reached: "
        f"{count(row['n_trials'])} of {count(row['n_trials'] + row['n_left_out'])} have {row['metric']} "
        f"there, and {count(row['n_top'])} of these are the best. PED-ANOVA: how far the values of a "
        "parameter among the best trials differ from those among all, as a share of 1. The interval is the "
        "middle 95 % of bootstrap resamples of trials. p: how often any parameter distinguishes the better "
        "half of permuted values as well; where no p is 0.05 or less, importances are not shown. A parameter "
        "without any effect has an importance above zero, and the sampler prefers good values: test those "
        "that are important in an ablation."
    )


def recordings_note(scored: str) -> str:
    """Return how to read F1 over recordings (or clips)."""
    return (
        f"F1 of the validation {scored} of all folds of a deal together, mean over deals. The interval is a "
        f"bootstrap over the {scored}, those that the split keeps together as one: it covers the choice of "
        f"{scored}, not the randomness of training. For a species with fewer than five of them it is too "
        "narrow, and F1 is too low on average."
    )


def usage(costs: dict[str, float | None]) -> str:
    """Return what the run folder has used of its budget; `costs` is of `resources.against_budget`."""
    parts = []
    for key, prefix, of in (
        ("hours", "", " of wall time"),
        ("gpu_hours", "GPU-", ""),
        ("cpu_hours", "CPU-", ""),
    ):
        used, limit = costs[key] or 0.0, costs.get(f"budget_{key}")
        if limit is not None:
            parts.append(f"{used:.3g} of {limit:g} {prefix}hours{of} ({used / limit:.0%} of the budget)")
        elif used:
            unit, factor = time_unit(used)
            parts.append(f"{used * factor:.3g} {prefix}{unit}{of}")
    text = f"All studies of the run folder together used {', '.join(parts) or 'no time yet'}"
    has_budget = any(costs[key] is not None for key in ("budget_hours", "budget_gpu_hours"))
    return f"{text}." if has_budget else f"{text}; no budget was set."


def confirmed_choice(best: dict[str, Any]) -> str:
    """Return the result of a race on fresh repeats (`confirmation.confirmed`), and the score before it."""
    metric, before = best["metric"], best["confirmed"]["before"]
    text = f"{aggregate.label(best['factors'])} with {metric} {number(best['mean'])}"
    if best["low"] is not None:
        text += f" (95 % interval {interval(best)}, {n_of(best['n'], 'repeat')})"
    return (
        f"{text}. In {best['study']}, with {n_of(before['n'], 'repeat')}, it had {number(before['mean'])}. "
        f"{best['how_sure']}"
    )


def confirmed_note(best: dict[str, Any]) -> str:
    """Return the rule of a race on fresh repeats, and where its trials are."""
    return (
        f"Rule: {best['rule']} Looks at the race share the 5 % of their errors. Every trial: birdtune report "
        f"{best['confirmed']['run']}"
    )


def warnings(study: dict[str, Any], cells: pd.DataFrame) -> list[str]:
    """Return what invalidates scores of a study, and what is left out of them."""
    out = [note for note in (study.get("data") or {}).get("notes", []) if note.startswith(LEAKAGE)]
    leaky = cells["is_leaky"].astype(bool)
    if out and leaky.any() and not leaky.all():
        out.append(
            f"This concerns {', '.join(cells.loc[leaky, 'label'])}. The other cells are split and scored by "
            "recording: differences from them are due to leakage and to scoring single clips."
        )
    return [*out, *study.get("load_notes", [])]


def caveats(study: dict[str, Any], cells: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """Return the limits of a study's numbers, each as a sentence."""
    out = []
    completed = cells[cells["n"] > 0]
    if aggregate.is_folded(study):
        n, n_folds = len(cells) - int(aggregate.has_all_repeats(cells, study).sum()), len(study["repeats"])
        out.append(
            f"{n} of {n_of(len(cells), 'config')} have fewer than {n_folds} folds: their scores are of other "
            "recordings than those of the others, and they do not compete."
        )
    elif single := int((completed["n"] == 1).sum()):
        out.append(f"{single} of {len(cells)} rows have one repeat: their differences may be chance.")
    if n := int(cells["n_failed"].sum()):
        out.append(
            f"{n_of(n, 'trial')} failed, diverged or killed: left out of means, which this may bias upward "
            "where some cells fail more often than others."
        )
    if n := int(cells["n_other"].sum()):
        out.append(
            f"{n_of(n, 'trial')} ran out of GPU memory and completed with smaller micro-batches, which "
            "changes the training of networks with batch norm: left out of means and comparisons."
        )
    for column, what in (("n_running", "not ended"), ("n_missing", "planned and not started")):
        if n := int(cells[column].sum()):
            out.append(f"{n_of(n, 'trial')} {what}.")
    marked = [str(name) for name in cells.loc[cells["unequal_epochs"].astype(bool), "label"]]
    if marked:
        out.append(f"Trained unequal epochs and therefore not compared: {', '.join(marked)}.")
    done = trials[trials["status"] == "completed"]
    if len(done) and (done["epochs"] < study["epochs"]).any():
        out.append(
            f"Completed trials trained {done['epochs'].min()} to {done['epochs'].max()} of "
            f"{study['epochs']} epochs."
        )
    if study["metric"] in done and (n := int(done[study["metric"]].isna().sum())):
        out.append(f"{n_of(n, 'trial')} completed without a finite {study['metric']}: left out of means.")
    if n := int(trials["reused"].sum()):
        out.append(f"{n_of(n, 'trial')} reused from another study of the run folder.")
    planned = [cell["config_id"] for cell in study.get("cells") or []]
    if len(set(planned)) < len(planned):
        out.append(
            f"{len(planned)} cells are only {len(set(planned))} configs: equal rows are the same trials, and "
            "their difference of zero is no result."
        )
    monitors = {config.get("training", {}).get("monitor", study["metric"]) for config in done["config"]}
    if monitors - {study["metric"]}:
        out.append(f"The best epoch of a trial was chosen by {', '.join(sorted(monitors))}.")
    if study["kind"] == "ablation" and (n := study.get("n_extended", 0)):
        times = "once" if n == 1 else f"{n} times"
        out.append(
            f"Extended {times}: the intervals are those of one look at the data. If repeats were added "
            "because of what an earlier report showed, differences are claimed by chance more often, with "
            f"{n + 1} looks in about {false_claims(n + 1)} % of studies instead of 5."
        )
    out.append(f"{OPTIMISTIC} This report does not open the test split.")
    n_folds = ((study.get("data") or {}).get("folds") or {}).get("n", 1)
    if study["kind"] == "ablation" and n_folds == 1:
        out.append(
            "All repeats were validated on the same recordings: intervals of accuracy and F1 cover which "
            "recordings these are, those of other metrics do not."
        )
    elif study["kind"] == "ablation" and len(study["repeats"]) < n_folds:
        out.append(
            f"{n_of(len(study['repeats']), 'repeat')} validated {len(study['repeats'])} of {n_folds} folds: "
            "the other recordings were never scored."
        )
    out += [f"On the split: {note}." for note in (study.get("data") or {}).get("notes", [])]
    for seen in (study.get("data") or {}).get("seen") or []:
        if caution := seen_caution(seen, *validated_splits(len(study.get("repeats") or [0]), n_folds)):
            out.append(f"{caution}.")
    factors = list(study.get("factors") or _varied(trials))
    if factors:
        out.append(f"Only {', '.join(factors)} varied; other values and other settings were not tested.")
    return out


def _varied(trials: pd.DataFrame) -> list[str]:
    """Return the parameters of a search of which its trials have two values or more, "absent" being one."""
    names = dict.fromkeys(name for factors in trials["factors"] for name in factors)
    return [name for name in names if len({repr(factors.get(name)) for factors in trials["factors"]}) > 1]


def false_claims(n_looks: int) -> int:
    """Return how often, in percent, a difference that is none is claimed at one of `n_looks` looks.

    After equal blocks of data, each at 5 % (Armitage, McPherson and Rowe 1969, JRSS A 132:235).
    """
    known = {1: 5, 2: 8, 3: 11, 4: 13, 5: 14, 10: 19}
    return known[max(n for n in known if n <= n_looks)]


def limits(report: StudyReport) -> list[str]:
    """Return the caveats of a study, and why the importance of its parameters is unknown, if it is."""
    out, importances = caveats(report.study, report.cells, report.trials), report.importance
    if len(importances) and importances["importance"].isna().all():
        reasons = "; ".join(dict.fromkeys(importances["note"]))
        out.append(f"The importance of parameters is not shown: {reasons}.")
    return out


def facts(report: StudyReport) -> list[tuple[str, str]]:
    """Return what is known of the data and its split, as pairs of a title and a value."""
    data, scored = report.study.get("data") or {}, report.scored
    # Which recordings are in training, validated or unused depends on the repeat; the test split does not.
    of = f", repeat {repeat}" if (repeat := _repeat_of(data)) is not None else ""
    titles = {
        "name": "data", "data_id": "data id", "split_id": f"split id{of}", "n_recordings": "recordings",
        "n_species": "species", "n_train": f"training {scored}{of}", "n_val": f"validation {scored}{of}",
        "n_test": f"test {scored} (not opened)", "n_unused": f"unused {scored} (of species never scored){of}",
        "n_skipped": "recordings skipped",
    }  # fmt: skip
    out = [
        (title, count(data[key]) if isinstance(data[key], int) else str(data[key]))
        for key, title in titles.items()
        if data.get(key) is not None
    ]
    if data.get("grouped_by"):
        out.append(("never in two splits", ", ".join(data["grouped_by"])))
    if strata := data.get("strata"):
        sizes = ", ".join(f"{len(members)} {name}" for name, members in strata.items())
        out.append(("species by stratum", sizes))
    if counts := data.get("train_counts"):
        rarest, commonest = min(counts.values()), max(counts.values())
        out.append((f"training {scored} a species{of}", f"{rarest} (rarest) to {commonest} (commonest)"))
    for seen in data.get("seen") or []:
        out.append((f"validation {scored}{of}, by {seen['backbone']}", seen_text(seen["counts"]["val"])))
    return out


def _repeat_of(data: dict[str, Any]) -> int | None:
    """Return the repeat whose split the facts of a study are of; None where all have one split."""
    folds = data.get("folds") or {}
    if folds.get("n", 1) == 1:
        return None
    return int(folds.get("deal", 0) * folds["n"] + folds.get("fold", 0))


def provenance(report: StudyReport) -> list[tuple[str, str]]:
    """Return where the numbers come from and what they cost, as pairs of a title and a value."""
    study, trials = report.study, report.trials
    source = study.get("provenance") or {}
    devices = sorted({str(p["device"]) for p in trials["provenance"] if p.get("device")})
    hours = trials.loc[~trials["reused"].astype(bool), "seconds"].sum() / 3600
    unit, factor = time_unit(hours)
    rows = {
        "run folder": study["run"],
        "created": study.get("created"),
        "command": source.get("command"),
        "git commit": source.get("git_commit"),
        "versions": ", ".join(
            f"{name} {version}" for name, version in (source.get("versions") or {}).items()
        ),
        "devices": ", ".join(devices),
        "time of trials, failed ones included": f"{hours * factor:.3g} {unit}",
        "trials": aggregate.status_counts(trials),
    }
    return [(key, str(value)) for key, value in rows.items() if value]
