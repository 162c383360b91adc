"""Few trials of each of the goals R1 to R20; `-m slow` makes all of them (see scripts/check_reliability.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOALS = [f"R{number}" for number in range(1, 21)]
SHORT = ["R1", "R4", "R6", "R7", "R11", "R12", "R13", "R15", "R17", "R18", "R19", "R20"]  # the others have tests beside


def found(place: Path, *args: str) -> dict:
    """What the script finds: a process of its own, since this one's torch has threads and must not fork."""
    script = [sys.executable, str(ROOT / "scripts" / "check_reliability.py")]
    done = subprocess.run([*script, "--json", str(place / "found.json"), *args], capture_output=True, text=True)
    assert (place / "found.json").exists(), done.stdout + done.stderr
    return json.loads((place / "found.json").read_text())


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    return found(tmp_path_factory.mktemp("reliability"), "--short")


@pytest.mark.parametrize("goal", SHORT)
def test_faults_do_no_harm(short, goal):
    assert short[goal]["trials"] > 0 and short[goal]["failures"] == []


@pytest.mark.slow
@pytest.mark.parametrize("goal", GOALS)
def test_hundreds_of_faults_do_no_harm(tmp_path, goal):
    assert found(tmp_path, goal)[goal]["failures"] == []
