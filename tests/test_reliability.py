"""The goals R1 to R21 under injected faults: few trials of each with `-m slow`, hundreds of each with `-m trials`.

Both run scripts/check_reliability.py. What each goal states has fast tests in the rooms, but for two: a kill at any
moment (R1) and the cost of it all (R20) are tried here alone.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOALS = [f"R{number}" for number in range(1, 22)]
SHORT = [
    "R1",
    "R4",
    "R6",
    "R7",
    "R11",
    "R12",
    "R13",
    "R15",
    "R17",
    "R19",
    "R20",
    "R21",
]  # the others' fast tests do as much


def found(place: Path, *args: str) -> dict:
    """What the script finds: a process of its own, since this one's torch has threads and must not fork."""
    script = [sys.executable, str(ROOT / "scripts" / "check_reliability.py")]
    done = subprocess.run([*script, "--json", str(place / "found.json"), *args], capture_output=True, text=True)
    assert (place / "found.json").exists(), done.stdout + done.stderr
    return json.loads((place / "found.json").read_text())


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    return found(tmp_path_factory.mktemp("reliability"), "--short")


@pytest.mark.slow
@pytest.mark.parametrize("goal", SHORT)
def test_faults_do_no_harm(short, goal):
    assert short[goal]["trials"] > 0 and short[goal]["failures"] == []


@pytest.mark.trials
@pytest.mark.parametrize("goal", GOALS)
def test_hundreds_of_faults_do_no_harm(tmp_path, goal):
    assert found(tmp_path, goal)[goal]["failures"] == []
