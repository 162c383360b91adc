"""Work in order on all cores."""

import threading
import time

import pytest

from ddpm_cli.data.prepare import pool
from ddpm_cli.data.prepare.pool import in_order


def decode_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("seconds", [0.0, 0.001])
@pytest.mark.parametrize("count", [0, 1, 16, 17, 1000])
def test_results_come_in_order(seconds, count):
    def work(some):
        time.sleep(seconds * (some[0] % 3))
        return list(some)

    assert [number for some in in_order(work, range(count)) for number in some] == list(range(count))
    assert not decode_threads()


def test_slow_work_is_shared_among_threads(monkeypatch):
    monkeypatch.setattr(pool, "_num_cores", lambda: 4)
    workers = set()

    def work(some):
        time.sleep(0.01)
        workers.add(threading.current_thread().name)

    list(in_order(work, range(200)))
    assert len(workers) > 2


@pytest.mark.parametrize("failing", [0, 100, 999])
def test_an_exception_comes_through_and_ends_the_work(failing):
    def work(some):
        time.sleep(0.008)
        if failing in some:
            raise ValueError(f"piece {failing}")
        return len(some)

    with pytest.raises(ValueError, match=f"piece {failing}"):
        list(in_order(work, range(1000)))
    assert not decode_threads()


def test_closing_cancels_what_has_not_begun():
    done = []

    def work(some):
        time.sleep(0.008)
        done.append(some)

    results = in_order(work, range(16_000))
    for _ in range(5):
        next(results)
    results.close()
    assert not decode_threads() and len(done) < 100
