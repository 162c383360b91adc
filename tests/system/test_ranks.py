"""How ranks that a process has started end: which of them is told to have died."""

import os
import signal
import time

from system import test_ranks

from ddpm_cli.system.ranks import Children, RankGone


def one_follows_the_other(place, store):
    """Rank 2 dies, and rank 1, which notices, is the first to be gone."""
    if place.rank == 1:
        raise RankGone("another rank is gone")
    store.wait(["go"])
    os.kill(os.getpid(), signal.SIGKILL)


def test_told_is_the_rank_that_was_the_first_to_go_and_not_one_that_followed():
    children = Children(test_ranks.one_follows_the_other, 3)
    try:
        deadline = time.monotonic() + 60
        while not children.died() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert children.died() and children.death() is None
        children.store.set("go", "")
        assert children.death(30.0) == "rank 2 died (SIGKILL)"
    finally:
        children.end(0.0)
