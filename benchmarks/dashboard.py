"""What a dashboard costs the sweep that it shows: one sweep, with the dashboard on and off in turns.

    python benchmarks/dashboard.py CLIPS.csv [N_PAIRS] [SECONDS]

Sweeps differ by several percent from one to the next, so that two whole sweeps cannot show what the dashboard
costs. Here one ablation of linear heads trains throughout. In every other block of SECONDS the dashboard's
server is stopped (SIGSTOP); in the blocks between, it serves its status every two seconds, as a page asks for
it. The order is on, off, off, on, so that a drift cancels. Printed is the ratio of epochs a second with the
dashboard to those without, a pair of blocks at a time, with its standard error. Linux only.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from birdnet_core.records.run_folder import RunFolder

STUDY = f"""question: Which weight decay?
base: {{features.name: embedding, features.backbone: birdnet, model.name: linear}}
factors:
  optim.weight_decay: {[i / 1e5 for i in range(1, 1001)]}
"""
POLL_S = 2.0
BIRDTUNE = [str(Path(sys.executable).with_name("birdtune"))]


def n_epochs(run: Path) -> int:
    """Return the epochs in the journal so far."""
    return RunFolder(run).journal_path.read_bytes().count(b'"event": "epoch"')


def poll(url: str, is_on: threading.Event, has_ended: threading.Event) -> None:
    """Ask for the status, as an open page does, while the dashboard is on."""
    while not has_ended.is_set():
        if is_on.wait(0.1):
            urllib.request.urlopen(url + "status.json", timeout=30).read()
            has_ended.wait(POLL_S)


def measure(clips: Path, n_pairs: int, block_s: float) -> list[float]:
    """Return the ratio of speed with the dashboard to speed without it, a value a pair of blocks."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        run, study = Path(folder) / "run", Path(folder) / "heads.yaml"
        study.write_text(STUDY, encoding="utf-8")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        options = ["--data", clips, "--out", run, "--repeats", "5"]
        sweep = subprocess.Popen([*BIRDTUNE, "sweep", study, *options], **quiet)  # type: ignore[call-overload]
        try:
            while not RunFolder(run).journal_path.exists() or n_epochs(run) < 500:
                if sweep.poll() is not None:
                    raise SystemExit("the sweep ended before it was measured")
                time.sleep(0.5)
            server = subprocess.Popen(  # type: ignore[call-overload]
                [*BIRDTUNE, "dashboard", run, "--no-browser", "--port", str(port)], **quiet
            )
            try:
                return _pairs(run, server, f"http://127.0.0.1:{port}/", n_pairs, block_s)
            finally:
                server.kill()
        finally:
            sweep.send_signal(signal.SIGINT)
            sweep.wait(120)


def _pairs(run: Path, server: subprocess.Popen[bytes], url: str, n_pairs: int, block_s: float) -> list[float]:
    is_on, has_ended = threading.Event(), threading.Event()
    time.sleep(10)  # the page is drawn once at the start
    poller = threading.Thread(target=poll, args=(url, is_on, has_ended))
    poller.start()
    ratios = []
    try:
        for pair in range(n_pairs):
            speed = {}
            for on in (True, False) if pair % 2 == 0 else (False, True):
                os.kill(server.pid, signal.SIGCONT if on else signal.SIGSTOP)
                is_on.set() if on else is_on.clear()
                start, before = time.monotonic(), n_epochs(run)
                time.sleep(block_s)
                speed[on] = (n_epochs(run) - before) / (time.monotonic() - start)
            ratios.append(speed[True] / speed[False])
            print(f"{speed[False]:.1f} epochs/s without, {speed[True]:.1f} with", flush=True)
    finally:
        os.kill(server.pid, signal.SIGCONT)
        has_ended.set()
        poller.join()
    return ratios


if __name__ == "__main__":
    ratios = measure(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 20,
        float(sys.argv[3]) if len(sys.argv) > 3 else 15.0,
    )
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(f"with the dashboard / without: {statistics.mean(ratios):.3f} (standard error {error:.3f})")
