"""What a person sees while something long runs: one table or bar that is redrawn, or a line a trial."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from birdnet_core.records.metrics import is_better, metric_direction
from birdnet_core.records.trial import parts_of

Event = dict[str, Any]


class SweepView:
    """Follows a sweep's events: what runs, what is done, the best so far, and how long it will take."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start = time.monotonic()
        self.sweep: Event = {}
        self.factors: dict[str, dict[str, Any]] = {}
        self.last: dict[str, Event] = {}
        self.further: dict[str, int] = {}  # trials on a further fold of their config, and its number from 0
        self.running: list[str] = []
        self.ended: Counter[str] = Counter()
        self.n_epochs = 0
        self.gpus: dict[str, float] = {}
        self.gpu_hours = 0.0
        self.best: dict[str, float] = {}  # of any epoch, by trial
        self.stage = ""
        self.uncertain: set[int] = set()  # epochs at which trials were spared
        self._live: Live | None = None

    def progress(self, stage: str, done: int, total: int) -> None:
        """Take in how far the making of stores is."""
        self.stage = f"{stage} {done:,}/{total:,}" if total > 1 else stage
        if done == total:
            self.stage = ""

    @contextlib.contextmanager
    def live(self) -> Iterator[SweepView]:
        """Draw the view while the block runs: live on a terminal, a line a trial elsewhere."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(self, console=self.console, refresh_per_second=2, transient=True) as self._live:
            yield self
        self._live = None

    def __call__(self, event: Event) -> None:
        """Take in one event of the driver."""
        kind, name = event["event"], event.get("trial_id", "")
        if kind == "sweep":
            self.sweep = event
            self.start = time.monotonic()
            self.stage = ""  # what came before is done, also where there was nothing to make
            # Another one may have gone before.
            self.last, self.ended, self.n_epochs, self.best = {}, Counter(), 0, {}
            self.uncertain.clear()
            self.further.clear()
        elif kind == "trial" and not event["reused"]:
            self.factors[name] = event["factors"]
            self.gpus[name] = event["gpus"]
            if event.get("fold"):
                self.further[name] = event["fold"]
            if name not in self.running:  # else it continues, on a whole GPU
                self.running.append(name)
        elif kind == "epoch":
            self.last[name] = event
            self.n_epochs += 1
            self.gpu_hours += self.gpus[name] * event["epoch_s"] / 3600
            value = event["metrics"].get(self.sweep["metric"])
            direction = metric_direction(self.sweep["metric"])
            if value is not None and is_better(value, self.best.get(name), direction):
                self.best[name] = value
        elif kind in ("note", "restart"):
            text = event.get("text") or f"{self._named(name)}: {event['error'].splitlines()[0]}; it continues"
            self.console.print(text, markup=False)
        elif kind == "audit":
            self.console.print(
                f"{self._named(name)}: behind after epoch {event['epoch']}; it trains on as an audit",
                markup=False,
            )
        elif kind == "spared" and event["epoch"] not in self.uncertain:
            self.uncertain.add(event["epoch"])
            self.console.print(
                f"{self._named(name)}: behind after epoch {event['epoch']}, but trained on: epochs so early "
                "do not clearly predict the end here; while that is so, no trial is ended there",
                markup=False,
            )
        elif kind == "end" and name in self.running:  # else the driver before was killed over it
            self.ended.update([event["status"]] * (name not in self.further))
            self.running.remove(name)
            if not self._live:
                self.console.print(self._ended_line(name, event["status"]), markup=False)

    def __rich__(self) -> Group:
        metric, table = self.sweep.get("metric", ""), []
        for name in self.running:
            last = self.last.get(name, {})
            epoch = f"{last.get('epoch', 0)}/{self.sweep.get('epochs', '?')}"
            value = last.get("metrics", {}).get(metric)
            table.append((self._named(name), epoch, value, last.get("epoch_s")))
        return Group(Text(self.headline()), running_table(metric, table))

    def headline(self) -> str:
        """Return the sweep in one line: trials by state, best so far, time used and left."""
        if not self.sweep or self.stage:
            return self.stage or "starting"
        n_ended = sum(self.ended.values())
        states = ", ".join(f"{n} {status}" for status, n in sorted(self.ended.items()))
        parts = [f"{n_ended}/{self.sweep['n_left']} trials" + (f" ({states})" if states else "")]
        if self.sweep["n_reused"]:
            parts.append(f"{self.sweep['n_reused']} reused")
        if self.best:
            parts.append(f"best {self.sweep['metric']} {self._best()}")
        elapsed = time.monotonic() - self.start
        parts.append(f"{clock(elapsed)} used")
        if self.gpu_hours:
            parts.append(f"{self.gpu_hours:.2f} GPU-hours")
        if self.n_epochs:
            # Pruned trials give back what they did not train, so this is an upper bound for a search.
            spared = sum(
                self.sweep["epochs"] - self.last[t]["epoch"] for t in self.last if t not in self.running
            )
            n_trials = self.sweep["n_left"] + len(self.further)
            total = n_trials * self.sweep["epochs"] - spared
            parts.append(f"about {clock(elapsed / self.n_epochs * (total - self.n_epochs))} left")
        return " · ".join(parts)

    def _best(self) -> str:
        """Return the best value; of a search by folds that of the means, once a config has all folds."""
        values, where, n_folds = list(self.best.values()), "", self.sweep.get("n_folds", 1)
        if n_folds > 1:
            configs: dict[str, list[float]] = {}
            for name, value in self.best.items():
                configs.setdefault(parts_of(name)[0], []).append(value)
            whole = [fmean(of_folds) for of_folds in configs.values() if len(of_folds) == n_folds]
            values = whole or values
            where = f" (mean of {n_folds} folds)" if whole else " (of one fold)"
        best = (max if metric_direction(self.sweep["metric"]) == "maximize" else min)(values)
        return f"{best:.4f}{where}"

    def _named(self, name: str) -> str:
        on = f"fold {self.further[name] + 1}: " if name in self.further else ""
        return on + (describe(self.factors.get(name, {})) or name)

    def _ended_line(self, name: str, status: str) -> str:
        last = self.last.get(name, {})
        value = last.get("metrics", {}).get(self.sweep["metric"])
        score = "" if value is None else f", {self.sweep['metric']} {value:.4f} after {last['epoch']} epochs"
        n = f"[{sum(self.ended.values())}/{self.sweep['n_left']}]"
        return f"{n} {status}: {self._named(name)}{score}"


def running_table(metric: str, rows: Iterable[tuple[str, str, float | None, float | None]]) -> Table:
    """Return a table of the trials in training: name, epoch, value of `metric`, seconds an epoch."""
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for column in ("trial", "epoch", metric, "s/epoch"):
        table.add_column(column, justify="left" if column == "trial" else "right", header_style="dim")
    for name, epoch, value, epoch_s in rows:
        table.add_row(
            Text(name),
            epoch,
            "" if value is None else f"{value:.4f}",
            "starting" if epoch_s is None else f"{epoch_s:.1f}",
        )
    return table


def describe(factors: dict[str, Any]) -> str:
    """Return a trial's choices in a short line."""
    texts = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in factors.items()}
    return ", ".join(f"{k.removesuffix('.name')}={v}" for k, v in texts.items())


def clock(seconds: float) -> str:
    """Return a duration as people say it: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class SpeedColumn(ProgressColumn):
    """Items a second, once that is known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "", style="dim")


LINE_EVERY_S = 10.0


class StageBars:
    """One bar for each stage of making stores; a plain line every ten seconds where there is no terminal.

    `work` is what was done: the number of items of each stage, and how many a second, once that is known.
    """

    def __init__(self, console: Console) -> None:
        self.work: dict[str, tuple[int, float | None]] = {}
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            SpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._first: dict[str, tuple[int, float]] = {}
        self._last_line = 0.0

    @contextlib.contextmanager
    def live(self) -> Iterator[StageBars]:
        """Draw the bars while the block runs."""
        with self._bars:
            yield self

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of `stage`."""
        now = time.monotonic()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._first[stage] = (done, now)
            self._last_line = now
        self._bars.update(self._tasks[stage], completed=done, total=total)
        self.work[stage] = (done, self._rate(stage, done, now))
        rate = self.work[stage][1]
        if not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S and rate:
            self._last_line = now
            self._console.print(
                f"{stage} {done:,}/{total:,}, {per_second(stage, rate)}, {clock((total - done) / rate)} left"
            )

    def _rate(self, stage: str, done: int, now: float) -> float | None:
        first, since = self._first[stage]
        return (done - first) / (now - since) if done > first and now > since else None

    def summary(self) -> str:
        """Return what was done and how fast, in a line."""
        stages = [
            f"{stage} {n:,}" + (f" ({per_second(stage, rate)})" if rate else "")
            for stage, (n, rate) in self.work.items()
        ]
        return f"done now: {', '.join(stages)}" if stages else "done now: nothing; all of it was there"


def per_second(stage: str, rate: float) -> str:
    """Return a speed with the unit of its stage: recordings are files, features are clips; slow ones as s."""
    if rate < 1:
        return f"{1 / rate:.0f} s each"
    return f"{rate:,.0f} {'files' if stage.endswith('recordings') else 'clips'}/s"
