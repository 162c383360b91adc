"""What a GPU would have to do, counted without one: no waits of the host, and few launches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def counted(*args):
    command = [sys.executable, str(Path(__file__).with_name("fake_cuda.py")), *args]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found():
    return counted()


@pytest.mark.parametrize("what", ["train", "sample"])
def test_the_host_waits_for_nothing_in_a_step(found, what):
    assert found[what]["waits"] == [] and found[what]["kernels"] > 200


def test_a_call_of_the_cifar10_network_in_bf16_is_few_launches(found):
    assert found["sample"]["kernels"] <= 400, found["sample"]


@pytest.mark.slow
def test_a_wait_would_be_seen():
    found = counted("wait")
    assert [len(found[what]["waits"]) for what in ("train", "sample")] == [1, 1]
