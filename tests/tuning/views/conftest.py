import pytest

from tests.journals import hold_the_lock, write_run


@pytest.fixture
def write(tmp_path):
    """Write studies and events; return the run folder."""
    return lambda studies, events: write_run(tmp_path / "run", studies, events)


@pytest.fixture
def driven():
    """Make a run folder look driven while the test runs."""
    processes = []

    def drive(run):
        processes.append(hold_the_lock(run))
        return processes[-1]

    yield drive
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
