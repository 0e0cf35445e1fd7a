import threading

import pytest

from birdnet_core.inference.streaming import read_ahead


def test_items_come_in_order_and_are_made_ahead_in_another_thread():
    made = []

    def items():
        for n in range(10):
            made.append(threading.current_thread())
            yield n

    found, ahead = [], threading.Event()
    for n in read_ahead(items(), 3):
        while n == 0 and len(made) < 4 and not ahead.wait(0.01):
            pass  # the thread reads on without being asked
        found.append(n)
        assert len(made) <= n + 5
    assert found == list(range(10))
    assert threading.main_thread() not in made and len(set(made)) == 1


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield from (1, 2)
        raise ValueError("broken")

    found = []
    with pytest.raises(ValueError, match="broken"):
        for item in read_ahead(items(), 3):
            found.append(item)
    assert found == [1, 2]


def test_whoever_stops_early_closes_the_items():
    closed = []

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    ahead = read_ahead(items(), 3)
    assert next(ahead) == 0
    ahead.close()
    assert closed == [True]
