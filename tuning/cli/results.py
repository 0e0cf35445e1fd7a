"""`birdtune report`, `best` and `gate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from birdnet_core.errors import BirdtuneError, ConfigError
from tuning.cli import options as opt
from tuning.cli.output import err_console, in_words, print_error, print_result


def report_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(callback=opt.local, metavar="[RUN...]", help="Run folders of `birdtune sweep`."),
    ] = None,
    imports: Annotated[
        Path | None,
        typer.Option(
            "--import",
            callback=opt.local,
            metavar="DIR",
            help="A folder with histories and test results of earlier work, as JSON.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=opt.local, help="The report's folder; RUN/report if left out, needed without a RUN."
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Write report.html, .md and .json, tables and figures, and print a summary."""
    from reports import write_report
    from reports.page.sentences import confirmed_choice

    runs = runs or []
    if not runs and imports is None:
        raise ConfigError(
            "nothing to report: give a run folder, a folder of earlier work by --import, or both"
        )
    if not runs and out is None:
        raise ConfigError(
            f"where does the report of {str(imports)!r} go? Without a run folder, give --out DIR"
        )
    folder = out or runs[0] / "report"
    report = write_report(runs, folder, imports=imports)
    page = str(folder / "report.html")
    result: dict[str, Any] = {"report": page, "studies": [s["name"] for s in report["studies"]]}
    lines = [f"on fresh repeats: {confirmed_choice(best)}" for best in report["confirmed"]]
    for study in report["studies"]:
        lines.append(f"{study['name']}: {study['answer']}")
        for warning in study["warnings"]:
            err_console.print(f"warning: {study['name']}: {warning}", style="yellow")
    if earlier := report["earlier_work"]:
        result |= {"imported": sum(row["imported"] for row in earlier["experiments"]),
                   "warnings": earlier["warnings"], "faults": earlier["faults"]}  # fmt: skip
        lines.append(f"{imports}, {result['imported']} imported experiments: {earlier['answer']}")
        for warning in earlier["warnings"]:
            err_console.print(f"warning: {warning}", style="yellow")
        for fault in earlier["faults"]:
            err_console.print(f"not used: {fault['file']}: {fault['fault']}", style="yellow")
    print_result(result, as_json, "\n".join([*lines, page]))


def best_command(
    run: opt.Run,
    study: opt.OneStudy = None,
    out: Annotated[
        Path | None,
        typer.Option(callback=opt.local, help="The file to write; RUN/best.json if left out."),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="What decides among the configs that may be the best: mean, the default, or cheapest. Of "
            "several objectives, on the Pareto front: mean of the first, or ideal; by default none does.",
            metavar="NAME",
        ),
    ] = None,
    n_confirm: Annotated[
        int | None,
        typer.Option(
            "--confirm",
            help="Race the best configs on fresh repeats, up to so many each, and choose by these alone.",
            metavar="N",
        ),
    ] = None,
    shortlist: Annotated[
        int | None, typer.Option(help="How many configs begin that race; 8 if left out.", metavar="N")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="The race ends when its choice can lose so much of the metric at most; 0 if left out.",
            min=0.0,
        ),
    ] = None,
    plugin: opt.Plugins = None,
    trust: opt.Trust = False,
    as_json: opt.Json = False,
) -> None:
    """Choose the best config by one stated rule, and write best.json for `train` and `sweep --base`.

    Of a search with several objectives it prints the Pareto front, and chooses one of it by --rule.
    """
    from birdnet_core.records.files import write_json
    from birdnet_core.records.run_folder import RunFolder
    from reports import choose, load
    from reports.page.sentences import early_stopping
    from reports.page.tables import front_table
    from reports.selection.choice import FRONT_RULES, front_in, one_study
    from reports.statistics.audits import audits_of
    from tuning.cli.sweeps import own_file, study_named

    for name, given in (("--shortlist", shortlist), ("--tolerance", tolerance)):
        if given is not None and n_confirm is None:
            raise ConfigError(f"{name} is of the race that --confirm N asks for; give both, or neither")
    runs = load([run])
    files, study = own_file(study), study_named(RunFolder(run), study)
    if n_confirm is None and rule is None and len(front := front_in(runs, study)):
        on_front = front_table(front, one_study(runs, study))
        rules = "    ".join(f"birdtune best {run} --rule {name}" for name in FRONT_RULES)
        text = f"{on_front.to_string(index=False)}\nnext: {rules}"
        print_result({"front": on_front.to_dict("records"), "rules": list(FRONT_RULES)}, as_json, text)
        return
    if n_confirm is None:
        best = choose(runs, study, rule)
    else:
        from tuning.cli.confirm import confirm

        n = 8 if shortlist is None else shortlist
        best = confirm(
            run,
            runs,
            study,
            rule or "mean",
            n_repeats=n_confirm,
            n=n,
            tolerance=tolerance or 0.0,
            files=files,
            trust=trust,
        )
    file = out or run / "best.json"
    write_json(file, best)
    for note in dict.fromkeys(n for s in runs.studies if study in (None, s["name"]) for n in s["load_notes"]):
        err_console.print(f"note: {note}", style="yellow")
    interval = "" if best["low"] is None else f" [{best['low']:.4f}, {best['high']:.4f}]"
    here = (best["study"], best["run"])
    of = next(s for s in runs.studies if (s["name"], s["run"]) == here)
    request = of.get("request") or {}
    stopping = early_stopping(audits_of(runs.trials_of(of), runs.epochs_of(of), of), best["metric"])
    following = ["birdtune", "train", str(file), "--data", request.get("data", "..."), "--seeds", "5"]
    lines = [
        in_words(best["factors"]),
        f"{best['metric']} {best['mean']:.4f}{interval}, n = {best['n']}",
        f"rule: {best['rule']}",
        best["how_sure"],
        stopping,
        str(file),
        f"next: {shlex.join(following)} --out model/",
    ]
    print_result(best, as_json, "\n".join(filter(None, lines)))


def gate_command(
    run: opt.Run,
    study: Annotated[str | None, typer.Option(help="Which study, where the run holds several.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Check the gates of a study: exit code 0 for GO, 1 for INVESTIGATE, 2 for NO-GO.

    Of several studies the worst decides. 3 means that there is no such run, or no gates.
    """
    from reports import load
    from reports.selection.gates import DECISIONS, verdicts

    try:
        found = verdicts(load([run]), study)
    except BirdtuneError as error:
        print_error(error)
        raise typer.Exit(3) from None
    lines = []
    for verdict in found:
        lines.append(f"{verdict['study']}: {verdict['decision']}")
        for gate in verdict["gates"]:
            value = "no value" if gate["value"] is None else f"{gate['value']:.4f}"
            if gate["low"] is not None:
                value += f" [{gate['low']:.4f}, {gate['high']:.4f}]"
            note = f"; {gate['note']}" if gate["note"] else ""
            lines.append(f"  {gate['status']:7}  {gate['criterion']}: {value}, n = {gate['n']}{note}")
    print_result({"studies": found}, as_json, "\n".join(lines))
    raise typer.Exit(max(DECISIONS.index(verdict["decision"]) for verdict in found))
