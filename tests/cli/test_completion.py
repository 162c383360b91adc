"""Tab completion as the README has it, in the shells themselves."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.search(r"### Tab completion\n.*?```\n(.*?)```", README, re.DOTALL)[1].splitlines()
SHELLS = {shell: line.strip() for line, shell in (text.split("# ") for text in LINES)}  # what is typed in each
# As bash does when Tab is hit: the function that is registered for the command, told of the line up to there.
BASH = """
complete_line() {
    local found=$(complete -p ddpm-train)
    COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    [[ $found =~ -F\\ ([a-z_]+) ]] && ${BASH_REMATCH[1]}
    printf '%s\\n' "${COMPREPLY[@]}"
}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder, with the console script on the path."""
    script = tmp_path / "bin" / "ddpm-train"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom ddpm_cli.train import main\n\nmain()\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "photos").mkdir()
    return tmp_path


def answers(shell, script, place):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    norc = {"bash": ["--norc"], "fish": ["--no-config"]}[shell]
    done = subprocess.run([shell, *norc, "-c", script], cwd=place, capture_output=True, text=True, timeout=120)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "line, told",
    [
        ("ddpm-train dataset=ci", ["dataset=cifar10", "dataset=cifar100"]),
        ("ddpm-train schedule=linear schedule.beta_", ["schedule.beta_end=", "schedule.beta_start="]),
        ("ddpm-train dataset=image_folder dataset.root=./ph", ["dataset.root=./photos"]),
    ],
)
def test_bash_completes_choices_settings_and_files(line, told, place):
    assert answers("bash", f"{BASH}{SHELLS['bash']}\ncomplete_line '{line}'", place) == told


def test_fish_completes(place):
    assert answers("fish", f"{SHELLS['fish']}; complete -C 'ddpm-train dataset=sv'", place) == ["dataset=svhn"]


def test_the_readme_has_a_line_for_each_shell_that_hydra_knows():
    assert list(SHELLS) == ["bash", "zsh", "fish"]
