"""What birdtune does on one NVIDIA GPU: its tests, speed, memory and a sweep, each in a process of its own.

    PYTHONPATH=. python benchmarks/gpu.py --out FOLDER [--phases steps,memory,...] [--seconds 240] [--cpu]

Writes FOLDER/results.json and results.md after every phase. A phase that fails or takes too long loses its
own rows only: what it found before, and the end of its log, are kept. All data are random, of 89 classes that
differ. Times are taken after a warm-up and with the GPU synchronised, medians of three unless a column says
otherwise. --cpu runs the same code at small sizes without a GPU, to try the script out.

Phases, in the order of worth: tests, steps, kernels, end_to_end, packing, packing_one_process,
packing_mps (gpu_packing.py), input, variants, memory, ray, doctor.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_common import (
    AUGMENTED,
    LIMITS,
    MIB,
    MODELS,
    MODES,
    N_CLASSES,
    N_TRAIN,
    N_VAL,
    ROOT,
    Bench,
    Settings,
    arguments,
    config_of,
    largest_difference,
    losses,
    run_phase,
    run_steps,
    seconds,
    step_ms,
    synchronise,
    synthetic,
    traced,
    waits,
    whole_batches,
)

from birdnet_core import registry
from birdnet_core.data.dataset import Dataset
from birdnet_core.training import batches
from birdnet_core.training import session as session_module
from birdnet_core.training.memory import give_back_memory
from birdnet_core.training.session import Session

HERE = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------------ phases


def tests(bench: Bench) -> None:
    """Run the tests that are marked gpu."""
    has_ray = importlib.util.find_spec("ray") is not None
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in (text := path.read_text()) and (has_ray or "mark.ray" not in text)
    ]
    report = bench.scratch / "tests.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-v",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "120"]
    done = subprocess.run([*command, *files], cwd=ROOT, check=False)
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [(case, fault) for case in cases for fault in case if fault.tag in ("failure", "error")]
    n_skipped = sum(case.find("skipped") is not None for case in cases)
    bench.row(
        files=len(files),
        exit_code=done.returncode,
        passed=len(cases) - len(failed) - n_skipped,
        failed=len(failed),
        skipped=n_skipped,
    )
    for case, fault in failed:
        lines = (fault.text or "").strip().splitlines()
        bench.row(test=case.get("name"), fault=fault.get("message", "")[:300], end="\n".join(lines[-15:]))


def steps(bench: Bench) -> None:
    """Measure training steps: speed, memory, waits, and losses against the CPU's and against eager ones."""
    on_cpu: dict[str, np.ndarray] = {}
    n = bench.pick(40, 2)
    for precision in ("bf16", "fp32", *bench.pick(("tf32",), ())):
        for model in MODELS:
            if precision == "tf32" and not model.startswith("audio"):
                continue
            dataset = few_clips(bench, model)
            for mode, settings in MODES.items():
                given = {"training.precision": precision, **settings}
                names = {"model": model, "precision": precision, "mode": mode}
                with bench.recorded(**names):
                    bench.row(**names, **measured_steps(bench, dataset, model, given))
                with bench.recorded(**names, check="against the CPU"):
                    if model not in on_cpu:
                        on_cpu[model] = cpu_losses(bench, dataset, model)
                    found = losses(bench, dataset, model, given, undropped(model), n=len(on_cpu[model]))
                    bench.row(**names, loss_against_cpu=largest_difference(found, on_cpu[model]))
            if precision != "bf16" and model != "audio_cnn":
                continue
            with bench.recorded(**names, check="captured against eager"):
                curves = [
                    losses(bench, dataset, model, {"training.precision": precision}, settings, AUGMENTED, n=n)
                    for settings in (*MODES.values(), MODES["eager"])
                ]
                bench.row(
                    **names,
                    eager_against_eager=largest_difference(curves[-1], curves[-2]),
                    captured_against_eager=largest_difference(curves[0], curves[-2]),
                )


def few_clips(bench: Bench, model: str) -> Dataset:
    return synthetic(bench, bench.shape(model), *bench.pick((2048, 128), (16, 16)))


def measured_steps(bench: Bench, dataset: Dataset, model: str, settings: Settings) -> dict[str, Any]:
    """Return the speed and memory of the steps of one config, on values that lie on the device."""
    start = time.perf_counter()
    session = Session(config_of(bench, model, settings), dataset)
    run_steps(session, 1)
    synchronise()
    found: dict[str, Any] = {"first_step_s": time.perf_counter() - start}
    # The capture is among these.
    found["slowest_of_next_s"] = max(seconds(lambda: run_steps(session, 1)) for _ in range(bench.pick(7, 1)))
    found["step_ms"] = step_ms(session, 0.2)
    found["clips_s"] = 1000 * bench.batch / found["step_ms"]
    found["kind"] = session.training_step
    if not bench.is_cpu:
        found["allocated_mb"] = torch.cuda.max_memory_allocated() / MIB
        found["reserved_mb"] = torch.cuda.max_memory_reserved() / MIB
    n = bench.pick(10, 1)
    given = whole_batches(session, n)
    found["waits_in_10_steps"] = waits(lambda: run_steps(session, n, given))
    return found


def cpu_losses(bench: Bench, dataset: Dataset, model: str) -> np.ndarray:
    """Return the losses of the first steps on the CPU, in fp32 without dropout."""
    threads = bench.pick(len(os.sched_getaffinity(0)), 1)
    on_cpu = {"training.precision": "fp32", "runtime.device": "cpu", "runtime.threads": threads}
    return losses(bench, dataset, model, on_cpu, undropped(model), n=bench.pick(20, 2))


def undropped(model: str) -> Settings:
    return {"model.dropout": 0.0} if "dropout" in registry.models[model].options else {}


def kernels(bench: Bench) -> None:
    """Count the kernels of a step in bf16, and the share of its time in which the GPU is busy.

    In a process of its own: torch's profiler may slow down what comes after it.
    """
    n, n_before = bench.pick((30, 10), (1, 1))
    timed: list[tuple[dict[str, str], Session, float]] = []
    for model in MODELS:
        for mode, settings in MODES.items():
            with bench.recorded(model=model, mode=mode):
                session = Session(config_of(bench, model, settings), few_clips(bench, model))
                run_steps(session, n_before)
                took = seconds(lambda session=session: run_steps(session, n))
                timed.append(({"model": model, "mode": mode}, session, 1000 * took / n))
    for names, session, ms in timed:
        with bench.recorded(**names):
            trace = traced(bench, lambda session=session: run_steps(session, n))
            bench.row(
                **names,
                kernels_a_step=trace.count / n,
                step_ms=ms,
                gpu_ms_a_step=trace.busy_ms / n,
                gpu_busy=trace.busy_ms / n / ms,
            )
            if names == {"model": "audio_cnn", "mode": "captured"}:
                for kernel, of_all in sorted(trace.ms_of.items(), key=lambda item: -item[1])[:24]:
                    bench.row(kernel=kernel, us_a_step=1000 * of_all / n)


def variants(bench: Bench) -> None:
    """Measure AudioCNN in bf16 as it is, augmented, deterministic, and its network by torch.compile."""
    dataset = few_clips(bench, "audio_cnn")
    kinds = {"plain": {}, "augmented": AUGMENTED, "deterministic": {"runtime.deterministic": True}}
    for kind, settings in kinds.items():
        for mode, of_mode in MODES.items():
            with bench.recorded(kind=kind, mode=mode):
                session = Session(config_of(bench, "audio_cnn", settings, of_mode), dataset)
                bench.row(kind=kind, mode=mode, step_ms=step_ms(session), steps=session.training_step)
    session = Session(config_of(bench, "audio_cnn", MODES["eager"]), dataset)
    # The compiler itself takes a CPU half a minute.
    session.model = torch.compile(session.model, backend=bench.pick("inductor", "eager"))
    first_s = seconds(lambda: run_steps(session, 1))
    bench.row(kind="compiled", mode="eager", step_ms=step_ms(session), first_step_s=first_s)


def input_(bench: Bench) -> None:
    """Train epochs of AudioCNN in bf16 from values on the GPU, mapped from disk, and from a DataLoader."""
    dataset = synthetic(bench, bench.spectrogram, *bench.pick((N_TRAIN, N_VAL), (16, 16)))
    rows = dataset.rows("train")
    for source in ("resident", "mapped"):
        for mode, settings in MODES.items():
            with bench.recorded(source=source, mode=mode):
                batches.fits_on = lambda *_, source=source: source == "resident"
                session = Session(config_of(bench, "audio_cnn", settings), dataset)
                session.train_epoch()
                took = statistics.median(seconds(session.train_epoch) for _ in range(3))
                bench.row(source=source, mode=mode, epoch_s=took, clips_s=len(rows) / took)
    from throughput import NpyFiles

    folder = bench.scratch / "npy"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{row}.npy" for row in rows]
    for path, row in zip(paths, rows, strict=True):
        np.save(path, dataset.stored_features(np.array([row]))[0])
    files = NpyFiles(paths, dataset.labels[rows].tolist())
    for n_workers in bench.pick((0, 4, 8), (0, 1)):
        source = f"DataLoader, {n_workers} workers"
        with bench.recorded(source=source, mode="by hand"):
            took = by_hand(bench, files, n_workers)
            bench.row(source=source, mode="by hand, one epoch", epoch_s=took, clips_s=len(rows) / took)


def by_hand(bench: Bench, files: Any, n_workers: int) -> float:
    """Return the seconds of the second epoch of AudioCNN as one writes it down, in bf16 autocast."""
    from throughput import as_drawn

    device = torch.device(bench.device)
    model = as_drawn("audio_cnn", N_CLASSES).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(
        files,
        bench.batch,
        shuffle=True,
        num_workers=n_workers,
        pin_memory=not bench.is_cpu,
        persistent_workers=n_workers > 0,
    )

    def epoch() -> None:
        for batch in loader:
            clips, classes = (part.to(device, non_blocking=True) for part in batch)
            optimizer.zero_grad()
            with torch.autocast(bench.device, torch.bfloat16):
                logits = model(clips)
            torch.nn.functional.cross_entropy(logits.float(), classes).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    epoch()
    return seconds(epoch)


def end_to_end(bench: Bench) -> None:
    """Train whole runs by `train`, of as many clips as the first experiments had; say where time goes."""
    from birdnet_core.training.run import train

    took: dict[str, float] = {}

    def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            result: list[Any] = []
            took[part] = took.get(part, 0.0) + seconds(lambda: result.append(work(*given, **more)))
            return result[0]

        return call

    for part, (owner, attribute) in {
        "training": (Session, "train_epoch"),
        "validation": (Session, "_predicted"),
        "copies": (session_module, "copied"),
        "scores": (session_module, "score"),
    }.items():
        if hasattr(owner, attribute):
            setattr(owner, attribute, timed(part, getattr(owner, attribute)))
    sizes, full = bench.pick((N_TRAIN, N_VAL), (16, 16)), bench.pick(23, 2)
    first, *others = MODES
    plan = [("audio_cnn", full, first), ("audio_cnn_v2", 1, first), ("audio_ast", 1, first)]
    for model, epochs, mode in plan + [("audio_cnn", full, mode) for mode in others]:
        names = {"model": model, "mode": mode}
        with bench.recorded(**names):
            dataset = synthetic(bench, bench.shape(model), *sizes)
            config = config_of(bench, model, MODES[mode], {"training.epochs": epochs})
            took.clear()
            result: list[Session] = []
            total = seconds(lambda: result.append(train(config, dataset)))  # noqa: B023
            session = result[0]
            bench.row(
                **names,
                kind=session.training_step,
                epochs=epochs,
                total_s=total,
                of_23_epochs_s=23 * total / epochs,
                **{f"{part}_share": value / total for part, value in took.items()},
                f1_macro=session.progress.best_metrics.get("val/f1_macro"),
            )
            later = seconds(session.step)
            trace = traced(bench, session.step)
            busy = trace.busy_ms / 1000 / later
            bench.row(**names, later_epoch_s=later, kernels_an_epoch=trace.count, gpu_busy=busy)


def memory(bench: Bench) -> None:
    """Run out of memory, train twenty trials in one process, and compare `probe` with a session."""
    from birdnet_core.training.probe import probe

    dataset = few_clips(bench, "audio_cnn")
    for mode, settings in MODES.items():
        config = config_of(bench, "audio_cnn", settings)
        for share in bench.pick((0.6, 0.4, 0.25), ()):
            with bench.recorded(check="out of memory", mode=mode, share=share):
                found = out_of_memory(bench, dataset, settings, share)
                bench.row(check="out of memory", mode=mode, share=share, **found)
                if found["n_out_of_memory"]:
                    break
        if not bench.is_cpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
        with bench.recorded(check="many trials", mode=mode):
            for number in range(bench.pick(20, 3)):
                Session(config, dataset).train_epoch()
                give_back_memory()
                if number in (0, 1, bench.pick(19, 2)):
                    bench.row(check=f"after trial {number + 1}", mode=mode, **memory_in_use(bench))
        with bench.recorded(check="probe", mode=mode):
            bench.row(check="probe", mode=mode, **vars(probe(config, dataset)))
            session = Session(config, dataset)
            bench.row(check="seen", mode=mode, step_s=step_ms(session) / 1000, **memory_in_use(bench))
            del session


def memory_in_use(bench: Bench) -> dict[str, float]:
    if bench.is_cpu:
        return {}
    return {
        "allocated_mb": torch.cuda.memory_allocated() / MIB,
        "reserved_mb": torch.cuda.memory_reserved() / MIB,
        "peak_reserved_mb": torch.cuda.max_memory_reserved() / MIB,
        "free_mb": torch.cuda.mem_get_info()[0] / MIB,
    }


def out_of_memory(bench: Bench, dataset: Dataset, settings: Settings, share: float) -> dict[str, Any]:
    """Train three epochs under a share of the memory that one takes, and return what became of them."""
    config = config_of(bench, "audio_cnn", settings, {"training.batch_size": 1024, "training.epochs": 3})
    torch.cuda.set_per_process_memory_fraction(1.0)
    session = Session(config, dataset)
    session.step()
    needed = torch.cuda.max_memory_reserved()
    del session
    give_back_memory()
    cap = share * needed
    torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)
    session = Session(config, dataset)
    history = [session.step()["train/loss"] for _ in range(3)]
    most = torch.cuda.max_memory_reserved()
    return {
        "kind": session.training_step,
        "needed_mb": needed / MIB,
        "cap_mb": cap / MIB,
        "most_reserved_mb": most / MIB,
        "is_cap_held": most <= cap,
        "n_out_of_memory": session.progress.n_out_of_memory,
        "micro_batch_size": session.progress.micro_batch_size,
        "losses": history,
        "not_comparable": session.not_comparable,
    }


STUDY = """\
name: gpu-sweep
question: Do sixteen trials share a GPU, and survive the death of their driver?
factors:
  optim.lr: [0.0003, 0.001, 0.003, 0.01]
repeats: {repeats}
"""


def ray_sweep(bench: Bench) -> None:
    """Trials under Ray, sixteen on a GPU, the driver killed half-way, and the rest resumed."""
    from probe_trials import descendants

    from birdnet_core.demo.synthetic import SyntheticBirds, write_synthetic_birds
    from birdnet_core.records.run_folder import RunFolder

    birds = write_synthetic_birds(
        bench.scratch / "birds", SyntheticBirds(n_species=4, n_recordings=bench.pick(80, 40), n_recordists=12)
    )
    study, run = bench.scratch / "gpu_sweep.yaml", bench.scratch / "run"
    repeats, n_before_kill = bench.pick((4, 7), (1, 1))
    study.write_text(STUDY.format(repeats=repeats))
    command = [sys.executable, "-m", "tuning.cli"]
    options = [
        "--data",
        str(birds),
        "--out",
        str(run),
        "--gpus-per-trial",
        "auto",
        "--workers",
        bench.pick("4", "1"),
    ]
    options += ["--set", f"training.epochs={bench.pick(40, 2)}", "--set", "training.patience=0"]
    started = time.monotonic()
    driver = subprocess.Popen([*command, "sweep", str(study), *options], cwd=ROOT)
    n_ended = 0
    while driver.poll() is None and n_ended < n_before_kill:
        time.sleep(0.2)
        with contextlib.suppress(Exception):  # the folder may be half made
            n_ended = sum(event["event"] == "end" for event in RunFolder(run).events())
    left: list[str] = []
    if driver.poll() is None:
        left = descendants()
        driver.send_signal(signal.SIGKILL)
    driver.wait()
    bench.row(part="killed", seconds=time.monotonic() - started, ended=n_ended, exit_code=driver.returncode)
    started = time.monotonic()
    done = subprocess.run([*command, "resume", str(run)], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    counts: dict[str, int] = {}
    for record in RunFolder(run).records().values():
        counts[record.status] = counts.get(record.status, 0) + 1
    bench.row(
        part="resumed",
        seconds=time.monotonic() - started,
        exit_code=done.returncode,
        trials=json.dumps(counts),
        end="\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])[-500:],
    )
    shares = {
        (event.get("cpus"), event.get("gpus"))
        for event in RunFolder(run).events()
        if event["event"] == "trial"
    }
    bench.row(part="cpus and gpus of a trial", shares=str(sorted(map(str, shares))))
    for record in RunFolder(run).records().values():
        if record.status != "completed":
            bench.row(part=record.trial_id, status=record.status, error=(record.error or "")[:400])
    for pid in left:  # of Ray, where they outlived their driver
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def doctor(bench: Bench) -> None:
    """What `birdtune doctor` and nvidia-smi print."""
    for command in ([sys.executable, "-m", "tuning.cli", "doctor"], ["nvidia-smi"]):
        with bench.recorded(command=command[-1]):
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=35,
                env={**os.environ, "COLUMNS": "160"},
            )
            for line in (done.stdout + done.stderr).splitlines()[:24]:
                bench.row(command=command[-1], line=line.rstrip())


# ------------------------------------------------------------------------------------------ runner

PHASES: dict[str, Callable[[Bench], None]] = {
    "tests": tests,
    "steps": steps,
    "kernels": kernels,
    "end_to_end": end_to_end,
    "input": input_,
    "variants": variants,
    "memory": memory,
    "ray": ray_sweep,
    "doctor": doctor,
}


def supervised(name: str, limit: float, scratch: Path, is_cpu: bool) -> dict[str, Any]:
    """Run a phase in a process group of its own for `limit` seconds; return its rows, and its error."""
    script = HERE / ("gpu_packing.py" if name.startswith("packing") else "gpu.py")
    result, log = scratch / f"{name}.jsonl", scratch / f"{name}.log"
    options = {"--phase": name, "--result": str(result), "--scratch": str(scratch)}
    command = [sys.executable, str(script), *sum(options.items(), ())]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "BIRDTUNE_CACHE": str(scratch / "cache")}
    start = time.monotonic()
    error: str | None = None
    with open(log, "w") as output:
        process = subprocess.Popen(
            command + (["--cpu"] if is_cpu else []),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            error = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit:.0f} s"
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(6)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = []
    for line in result.read_text().splitlines() if result.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # cut off by the kill
            rows.append(json.loads(line))
    lines = log.read_text(errors="replace").splitlines()
    return {
        "phase": name,
        "seconds": round(time.monotonic() - start, 1),
        "error": error,
        "log": "\n".join(lines[-30:]) if error else "",
        "rows": rows,
    }


def machine() -> str:
    """Return one line that names the GPU, its driver, torch, cuDNN, the date, the commit and the CPUs."""

    def printed(*command: str) -> str:
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        return " ".join(done.stdout.split()) if done.returncode == 0 else "unknown"

    cudnn: int | str | None = "unknown"
    with contextlib.suppress(Exception):
        cudnn = torch.backends.cudnn.version()
    card = printed("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return (
        f"{card}; torch {torch.__version__}, cuDNN {cudnn}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; commit {printed('git', 'rev-parse', '--short', 'HEAD')}; "
        f"{len(os.sched_getaffinity(0))} CPUs"
    )


def as_text(value: Any, width: int = 200) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}"
    return str("" if value is None else value).replace("\n", " / ").replace("|", "/")[:width]


def as_markdown(header: str, found: list[dict[str, Any]]) -> str:
    parts = [header, ""]
    for phase in found:
        parts += [f"## {phase['phase']} ({phase['seconds']} s)", ""]
        columns = list(dict.fromkeys(key for row in phase["rows"] for key in row))
        if columns:
            parts += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            parts += [
                "| " + " | ".join(as_text(row.get(key)) for key in columns) + " |" for row in phase["rows"]
            ]
            parts.append("")
        if phase["error"]:
            parts += [phase["error"], "", "```", phase["log"], "```", ""]
    return "\n".join(parts)


def print_summary(header: str, found: list[dict[str, Any]], most: int = 11_000) -> None:
    """Print one line a row, cut to what a remote machine sends back of its output."""
    lines = [header]
    for phase in found:
        lines.append(f"== {phase['phase']} {phase['seconds']} s {phase['error'] or 'ok'}")
        lines += [
            "  " + " ".join(f"{key}={as_text(value, 90)}" for key, value in row.items() if value is not None)
            for row in phase["rows"]
        ]
        lines += [f"  ! {line[:160]}" for line in phase["log"].splitlines()[-6:]]
    share = max(60, most // len(lines) * 2)
    print("\n".join(line[:share] for line in lines)[:most])


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of the same model, precision and mode as one."""
    whole: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, row in enumerate(rows):
        keys = ("model", "precision", "mode")
        is_part = "model" in row and "error" not in row
        whole.setdefault(tuple(map(row.get, keys)) if is_part else (number,), {}).update(row)
    return list(whole.values())


def main() -> None:
    given = arguments()
    if given.phase:
        run_phase(PHASES, given)
        return
    end = time.monotonic() + given.seconds
    given.out.mkdir(parents=True, exist_ok=True)
    header = machine()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="birdtune-gpu-", ignore_cleanup_errors=True) as scratch:
        for name in given.phases.split(","):
            left = end - time.monotonic()
            if left < 10:
                found.append({"phase": name, "seconds": 0, "error": "no time left", "log": "", "rows": []})
            else:
                limit = min(LIMITS[name], left)
                found.append(supervised(name, limit, Path(scratch), given.cpu))
                found[-1]["rows"] = merged(found[-1]["rows"])
            print(f"{name}: {found[-1]['seconds']} s, {found[-1]['error'] or 'ok'}", flush=True)
            (given.out / "results.json").write_text(
                json.dumps({"machine": header, "phases": found}, indent=1)
            )
            (given.out / "results.md").write_text(as_markdown(header, found))
    print_summary(header, found)


if __name__ == "__main__":
    main()
