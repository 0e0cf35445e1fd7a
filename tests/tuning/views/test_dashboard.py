"""The server of the dashboard, as a browser, another site's page or a script would ask it."""

import http.client
import json
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest

from birdnet_core.errors import ConfigError
from birdnet_core.records.run_folder import RunFolder
from search_spaces.study import Search
from tests.journals import ABLATION, MIXED, SEARCH, begin
from tuning.engine.searcher import open_study
from tuning.views import dashboard
from tuning.views.dashboard import Dashboard, optuna_command
from tuning.views.status import run_status

ROOT = Path(__file__).parents[3]
REPORT = """
import sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
with open(out / "calls.txt", "a") as calls:
    calls.write("x")
n = len((out / "calls.txt").read_text())
time.sleep(0.3)
(out / "report.html").write_text(f"report {n}")
"""


@pytest.fixture
def serve(tmp_path):
    """Serve a run folder with a page and a report of one line each."""
    servers = []

    def start(run, report=REPORT):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        server = Dashboard(run, 0, lambda: "the page", [sys.executable, "-c", report], os.environ, scratch)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.close()


def ask(server, path="/", method="GET", **headers):
    """Return status, headers and body of an answer; `headers` replace those of a browser."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    given = {"Host": f"127.0.0.1:{server.server_port}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.putrequest(method, path, skip_host=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value.replace("PORT", str(server.server_port)))
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def test_the_status_is_that_of_the_verb(serve, write, driven):
    run = write([SEARCH, ABLATION], MIXED)
    driven(run)
    status, headers, body = ask(serve(run), "/status.json")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    assert json.loads(body) == json.loads(json.dumps(asdict(run_status(run))))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:PORT"}, 200),
        ({"Origin": "http://127.0.0.1:PORT", "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, 200),
        # A link of another page opens it, and cannot read it.
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}, 200),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": None}, 403),
        ({"Host": "birds.example:PORT"}, 403),
        ({"Host": "127.0.0.1:PORT.birds.example"}, 403),
        ({"Origin": "http://birds.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:PORT"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "script"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/status.json", "/report"])
def test_only_its_own_pages_may_read_it(serve, write, headers, status, path):
    answer = ask(serve(write([SEARCH], [])), path, **headers)
    assert answer[0] == status
    if status == 403:
        assert "rates" not in answer[2] and "page" not in answer[2].split() and len(answer[2]) < 100


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_there_is_nothing_to_write(serve, write, method):
    status, headers, _ = ask(serve(write([SEARCH], [])), "/status.json", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_head_has_the_headers_alone(serve, write):
    server = serve(write([SEARCH], []))
    status, headers, body = ask(server, "/", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len("the page")), "")


@pytest.mark.parametrize(
    "path",
    ["/journal.jsonl", "/../../etc/passwd", "/%2e%2e/journal.jsonl", "/report/",
     "/status.json/..", "/report.html", "/studies/rates.json", "http://127.0.0.1/status.json"],
)  # fmt: skip
def test_no_path_leads_to_a_file(serve, write, path):
    status, _, body = ask(serve(write([SEARCH], MIXED)), path)
    assert status == 404 and "rates" not in body


def test_every_answer_forbids_frames_and_guesses(serve, write):
    server = serve(write([SEARCH], []))
    for path in ("/", "/status.json", "/nothing"):
        _, headers, _ = ask(server, path)
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert "Python" not in headers["Server"]


def test_nothing_in_the_run_folder_is_written_or_locked(serve, write):
    run = write([SEARCH], MIXED)
    with run.driven():
        pass  # leaves a lock file of this process, which is alive
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in [run.path, *run.path.rglob("*")]}
    server = serve(run)
    for _ in range(20):
        server._at = -1.0  # as if a second had passed
        ask(server, "/status.json")
        ask(server, "/")
        with run.driven("a driver that starts meanwhile"):
            pass
    del before[run.lock_path]
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in [run.path, *run.path.rglob("*")]}
    assert before == {path: times for path, times in after.items() if path in before}
    assert set(after) == {*before, run.lock_path}


def test_a_run_folder_that_is_gone_or_altered_is_an_error_and_the_server_lives_on(serve, write):
    run = write([SEARCH], MIXED)
    server = serve(run)
    assert ask(server, "/status.json")[0] == 200
    journal = run.journal_path.read_text()
    run.journal_path.write_text("not JSON\n" * 1000 + journal)
    server._at = -1.0
    status, _, body = ask(server, "/status.json")
    assert status == 500 and "not JSON" in json.loads(body)["error"]
    run.journal_path.write_text(journal)
    server._at = -1.0
    assert ask(server, "/status.json")[0] == 200


def report_of(server):
    """Return the report once it is made."""
    for _ in range(200):
        status, _, body = ask(server, "/report")
        assert status == 200
        if "being made" not in body:
            return body
        time.sleep(0.05)
    raise TimeoutError("the report was not made within 10 s")


def test_a_report_is_made_when_it_is_opened_and_again_once_the_run_has_changed(serve, write):
    run = write([SEARCH], MIXED)
    server = serve(run)
    assert "being made" in ask(server, "/report")[2], "the request does not wait for the report"
    assert report_of(server) == "report 1"
    assert report_of(server) == "report 1"
    run.append(begin("f-r0", 5))
    assert report_of(server) == "report 2"


def test_while_the_sweep_runs_a_report_is_made_every_half_minute_at_most(serve, write, driven, monkeypatch):
    run = write([SEARCH], MIXED)
    driven(run)
    server = serve(run)
    assert report_of(server) == "report 1"
    run.append(begin("f-r0", 5))
    assert report_of(server) == "report 1"
    monkeypatch.setattr(dashboard, "REPORT_EVERY_S", 0.0)
    assert report_of(server) == "report 2"


def test_a_report_that_cannot_be_made_gives_its_reason_as_text(serve, write):
    server = serve(write([SEARCH], []), "import sys; sys.exit('error: no trial <b>has</b> ended')")
    body = report_of(server)
    assert "no trial &lt;b&gt;has&lt;/b&gt; ended" in body and "refresh" not in body


def test_a_taken_port_is_one_line(write, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on port {port}: Address already in use; give"):
            Dashboard(write([SEARCH], []), port, str, [], {}, tmp_path)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_verb_serves_on_this_machine_alone_until_ctrl_c_and_leaves_nothing(write, tmp_path, end):
    run = write([SEARCH, ABLATION], MIXED)
    # Ctrl-C ends it, also where these tests run as a background job, whose children ignore that.
    code = "import signal; signal.signal(2, signal.default_int_handler); from tuning.cli import main; main()"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", code, "dashboard", str(run.path), "--port", str(port), "--no-browser"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "TMPDIR": str(tmp_path)})  # fmt: skip
    try:
        line = process.stderr.readline()
        assert line == f"http://127.0.0.1:{port} follows {run.path}; Ctrl-C ends it\n"
        listening = {
            row.split()[1]
            for row in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A"
        }
        assert listening == {f"0100007F:{port:04X}"}  # 127.0.0.1, and no other address
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/")
        page = connection.getresponse().read().decode()
        assert 'data-study="rates"' in page and 'data-study="losses"' in page
        assert "optuna.jsonl" in page and "connect-src &#39;self&#39;" not in page
        connection.request("GET", "/report")
        assert b"being made" in connection.getresponse().read()
    finally:
        process.send_signal(end)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.glob("birdtune-dashboard-*")) == []


# Optuna's dashboard


def searched(path, storage):
    """Return a run folder whose search has a finished and a running trial."""
    run = RunFolder(path)
    run.write_study({**SEARCH, "storage": storage})

    def space(trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2)}

    study = open_study(run, Search(name="rates", space=space, n_trials=3), seed=0, storage=storage)
    for _ in range(2):
        space(study.ask())
    study.tell(0, 0.5)
    return run


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_the_command_opens_a_copy_of_the_search(tmp_path, monkeypatch, storage):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = searched(tmp_path / "a run's folder", storage)
    driver = sqlite3.connect(run.storage_path, isolation_level=None)
    if storage == "sqlite":  # in the middle of a transaction, which is not half copied
        driver.execute("BEGIN IMMEDIATE")
        driver.execute("UPDATE trials SET state = 'FAIL'")
    command = optuna_command(run, run.read_study("rates"))
    copying, _, serving = command.rpartition(" && ")
    copying = copying.replace("python -c", f"{shlex.quote(sys.executable)} -c")
    for _ in range(2):  # also where there is a copy
        subprocess.run(["bash", "-c", copying], check=True)
    driver.close()
    words = shlex.split(serving)
    assert words[:3] == ["optuna-dashboard", "--port", "8081"]
    backend = optuna.storages.journal.JournalFileBackend
    copy = optuna.storages.JournalStorage(backend(words[3])) if storage == "journal" else words[3]
    study = optuna.load_study(study_name="rates", storage=copy)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "RUNNING"]
    assert str(run.path) not in words[3]


def test_databases_are_opened_themselves_and_ablations_have_no_command(tmp_path):
    run = RunFolder(tmp_path)
    url = "postgresql+psycopg://user@host/database"
    assert optuna_command(run, {**SEARCH, "storage": url}) == f"optuna-dashboard --port 8081 {url}"
    assert optuna_command(run, {**SEARCH, "storage": "env"}).endswith('"$BIRDTUNE_STORAGE"')
    assert optuna_command(run, ABLATION) is None
