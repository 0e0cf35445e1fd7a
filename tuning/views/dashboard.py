"""The server of `birdtune dashboard`: a page that follows a run folder, its status, and its full report.

It answers GET and HEAD, on this machine alone, to pages that it served itself. It reads the run folder, takes
no lock, and writes only into a scratch folder of its own.
"""

from __future__ import annotations

import html
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from birdnet_core.errors import BirdtuneError, ConfigError
from birdnet_core.records.run_folder import RunFolder
from tuning.views.status import StatusReader

HOST = "127.0.0.1"
REPORT_EVERY_S = 30.0
"""While a sweep runs, its report is made again no sooner than this."""
HEADERS = {
    # The pages have a policy of their own for what they load.
    "Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
NOTICE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy"
content="default-src 'none'; style-src 'unsafe-inline'">{refresh}<title>birdtune report</title></head>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem">
<p role="status">{text}</p><p><a href="/">Back to the dashboard</a></p></body></html>
"""
Page = tuple[int, str, str]
"""The answer to a request: status, content type, text."""


class Report:
    """The full report of a run, made by `command` with ``--out FOLDER`` after it, in a process of its own.

    `get` returns a page at once: the report, or a notice that it is being made.
    """

    def __init__(
        self, run: RunFolder, command: Sequence[str], environment: Mapping[str, str], scratch: Path
    ) -> None:
        self._run = run
        self._command = command
        self._environment = environment
        self._scratch = scratch
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._began = -REPORT_EVERY_S
        # Of the run folder: when the report was begun, and now.
        self._version: tuple[int, ...] = ()

    def get(self, is_running: bool) -> Page:
        with self._lock:
            version = _version(self._run)
            is_made = self._process is not None and self._process.poll() is not None
            wait = is_running and time.monotonic() - self._began < REPORT_EVERY_S
            if self._process is None or (is_made and version != self._version and not wait):
                self._begin(version)
                is_made = False
            if not is_made:
                return _notice("The full report is being made. It opens here once it is there.", refresh=True)
            assert self._process is not None
            if self._process.returncode:
                error = (self._scratch / "errors.txt").read_text(encoding="utf-8", errors="replace")
                return _notice(f"The report could not be made: {error.strip()[-2000:]}")
            return 200, "text/html", (self._scratch / "report.html").read_text(encoding="utf-8")

    def _begin(self, version: tuple[int, ...]) -> None:
        self._version, self._began = version, time.monotonic()
        with open(self._scratch / "errors.txt", "w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [*self._command, "--out", str(self._scratch)],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the server, which ends this one
            )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)  # the trials come first

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def _version(run: RunFolder) -> tuple[int, ...]:
    """Return what changes with every event and every choice in a run folder."""
    files = [run.journal_path, *sorted(run.path.glob("*.json"))]
    return tuple(path.stat().st_mtime_ns for path in files if path.exists())


def _notice(text: str, *, refresh: bool = False) -> Page:
    again = '<meta http-equiv="refresh" content="2">' if refresh else ""
    return 200, "text/html", NOTICE.format(text=html.escape(text), refresh=again)


class Dashboard(ThreadingHTTPServer):
    """Serves the page of a run at ``/``, its status at ``/status.json`` and its report at ``/report``.

    Args:
        page: returns the page.
        report: the command that writes a report, see `Report`; it runs in `environment`.
    Raises ConfigError where the port is taken.
    """

    daemon_threads = True

    def __init__(
        self,
        run: RunFolder,
        port: int,
        page: Callable[[], str],
        report: Sequence[str],
        environment: Mapping[str, str],
        scratch: Path,
    ) -> None:
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(f"cannot listen on port {port}: {reason}; give another --port") from None
        self.address = f"http://{HOST}:{self.server_port}"
        self._page = page
        self._report = Report(run, report, environment, scratch)
        self._reader = StatusReader(run)
        self._lock = threading.Lock()
        self._status = ""
        self._is_running = True
        self._at = -1.0

    def answer(self, path: str) -> Page:
        """Return the answer to a request for `path`."""
        pages: Mapping[str, Callable[[], Page]] = {
            "/": lambda: (200, "text/html", self._page()),
            "/status.json": lambda: (200, "application/json", self.status()),
            "/report": self._full_report,
        }
        if path not in pages:
            return 404, "text/plain", "there is nothing here; the dashboard is at /"
        try:
            return pages[path]()
        except (BirdtuneError, OSError) as error:
            text = json.dumps({"error": str(error)}) if path == "/status.json" else str(error)
            return 500, "application/json" if path == "/status.json" else "text/plain", text

    def status(self) -> str:
        """Return what `birdtune status --json` prints, read at most once a second for all pages together."""
        with self._lock:
            if time.monotonic() - self._at >= 1 or not self._status:
                status = self._reader.status()
                self._status = json.dumps(asdict(status), ensure_ascii=False)
                self._is_running = status.driver is not None and status.driver.is_alive is not False
                self._at = time.monotonic()
            return self._status

    def _full_report(self) -> Page:
        self.status()
        return self._report.get(self._is_running)

    def refusal(self, headers: Message) -> str | None:
        """Return why a request is refused: it came by another name, or from another site's page; else None.

        The name keeps out a site that gives its own name the address 127.0.0.1 (DNS rebinding).
        """
        names = [f"{name}:{self.server_port}" for name in (HOST, "localhost")]
        if headers.get("Host") not in names:
            return f"open {self.address}; through a tunnel, forward this same port"
        origin = headers.get("Origin")
        if origin is not None and origin not in [f"http://{name}" for name in names]:
            return "pages of other sites may not read this one"
        is_opened = (
            headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        )
        if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and not is_opened:
            return "pages of other sites may not read this one"
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over a browser that has gone; print the traceback of anything else."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Free the port, and end a report that is being made."""
        self.server_close()
        self._report.close()


class Handler(BaseHTTPRequestHandler):
    server: Dashboard
    server_version, sys_version = "birdtune", ""
    timeout = 30

    def do_GET(self) -> None:
        refusal = self.server.refusal(self.headers)
        self._send(*(403, "text/plain", refusal) if refusal else self.server.answer(self.path.split("?")[0]))

    do_HEAD = do_GET

    def _refuse_method(self) -> None:
        self._send(405, "text/plain", "only GET and HEAD are answered", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse_method

    def _send(self, status: int, content: str, text: str, more: Mapping[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        headers = {"Content-Type": f"{content}; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in {**HEADERS, **headers, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the terminal is for the address


def optuna_command(run: RunFolder, study: Mapping[str, Any]) -> str | None:
    """Return the command that opens a search in optuna-dashboard; None of an ablation.

    It opens a copy: a dashboard on the SQLite file of a study in progress has crashed the study
    (optuna-dashboard issue 545), and it can alter what it shows. A database is opened itself.
    """
    if study["kind"] != "search":
        return None
    storage = str(study.get("storage", "journal"))
    copy = Path(tempfile.gettempdir()) / f"optuna-{run.path.absolute().name}"
    serve = ["optuna-dashboard", "--port", "8081"]
    if storage == "journal":
        # Lines are only ever appended, and Optuna leaves out a last one without its end.
        file = f"{copy}.jsonl"
        lines = [["cp", str(run.path.absolute() / "optuna.jsonl"), file], [*serve, file]]
    elif storage == "sqlite":
        file = f"{copy}.db"
        source = f"{run.storage_path.absolute().as_uri()}?mode=ro"
        # SQLite's own copy: a transaction is in it as a whole or not at all.
        code = f"import sqlite3; sqlite3.connect({source!r}, uri=True).execute('VACUUM INTO ?', [{file!r}])"
        lines = [["rm", "-f", file], ["python", "-c", code], [*serve, f"sqlite:///{file}"]]
    elif storage == "env":
        return f'{shlex.join(serve)} "$BIRDTUNE_STORAGE"'
    else:
        lines = [[*serve, storage]]
    return " && ".join(map(shlex.join, lines))
