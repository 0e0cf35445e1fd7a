"""The command `birdtune`. Only this package prints; each verb imports what it needs when it is called."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from birdnet_core.errors import BirdtuneError
from tuning.cli import data, demo, doctor, embed, plans, predict, results, studies, sweeps, train, watching
from tuning.cli.output import err_console, print_error, print_fault

app = typer.Typer(
    help="Honest sweeps and ablations for bird-sound classifiers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
VERBS: dict[str, Callable[..., None]] = {
    "list": studies.list_names,
    "plan": plans.plan_command,
    "sweep": sweeps.sweep_command,
    "resume": sweeps.resume_command,
    "rerun": sweeps.rerun_command,
    "extend": sweeps.extend_command,
    "status": watching.status_command,
    "dashboard": watching.dashboard_command,
    "runs": watching.runs_command,
    "report": results.report_command,
    "best": results.best_command,
    "gate": results.gate_command,
    "train": train.train_command,
    "evaluate": train.evaluate_command,
    "predict": predict.predict_command,
    "export": predict.export_command,
    "embed": embed.embed_command,
    "demo": demo.demo_command,
    "doctor": doctor.doctor_command,
}
for name, command in VERBS.items():
    app.command(name)(command)

data_app = typer.Typer(help="Recordings: list them, prepare them, look at them.", no_args_is_help=True)
data_app.command("index")(data.data_index)
data_app.command("prepare")(data.data_prepare)
data_app.command("describe")(data.data_describe)
app.add_typer(data_app, name="data")

study_app = typer.Typer(help="Studies: look at them, and write your own.", no_args_is_help=True)
study_app.command("show")(studies.study_show)
study_app.command("schema")(studies.study_schema_command)
app.add_typer(study_app, name="study")


VERBOSE = "--verbose"
INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended
# Typer does not name the base of its errors of the command line.
_UsageError: Any = typer.BadParameter.__base__


@app.callback()
def options_of_all(
    verbose: Annotated[
        bool, typer.Option(VERBOSE, help="Print the traceback of an error too; anywhere on the line.")
    ] = False,
) -> None:
    pass  # main() takes it off the line, wherever it stands; here for --help


def main() -> None:
    """Run the command line; an error is one clear message and exit code 1.

    A bug in birdtune leaves its traceback in a file, which the message names.
    """
    arguments = sys.argv[1:]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    is_verbose = VERBOSE in own
    try:
        # Typer's own way ends silently on Ctrl-C, and does not name what was given.
        code = app([each for each in own if each != VERBOSE] + arguments[len(own) :], standalone_mode=False)
        if code != INTERRUPTED:
            sys.exit(code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except _UsageError as error:
        found: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()  # of numbers and choices
        if found and error.message:
            error.message += f"; {found[0]['input']!r} was given"
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if is_verbose:
            traceback.print_exc()
        if isinstance(error, BirdtuneError):
            print_error(error)
        elif isinstance(error, OSError):
            where = f": {error.filename}" if error.filename else ""
            print_fault(f"{error.strerror or error}{where}")
        else:
            _print_unexpected(error)
        sys.exit(1)
    err_console.print("interrupted; what is finished is kept; run the same command again to continue")
    sys.exit(code)


def _print_unexpected(error: Exception) -> None:
    """Print that birdtune itself failed, and where the traceback is kept."""
    with tempfile.NamedTemporaryFile("w", prefix="birdtune-", suffix=".log", delete=False) as log:
        log.write(f"birdtune {' '.join(sys.argv[1:])}\n{''.join(traceback.format_exception(error))}")
    print_fault(
        f"{type(error).__name__}: {error}\n"
        f"This is a bug in birdtune; the traceback is in {log.name}, or on the terminal with {VERBOSE}. "
        "What is finished is kept."
    )
