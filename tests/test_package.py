"""The package from the outside: the wheel in an empty folder, the environment of scripts/run, the pinned versions."""

import os
import re
import shutil
import site
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def call(argv, **options):
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, **options)


def build(kind, source, target):
    done = call([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target)], cwd=source)
    assert done.returncode == 0, done.stderr
    return next(iter(target.glob("*.whl" if kind == "wheel" else "*.tar.gz")))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and, through a .pth, what the running one has beside it: needs no network."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "beside.pth").write_text("\n".join(site.getsitepackages()))
    return python


def run_installed(python, command, *argv, cwd):
    script = (
        "import sys\nfrom importlib.metadata import distribution\n"
        f"(entry,) = [e for e in distribution('ddpm_cli').entry_points if e.name == '{command}']\n"
        f"sys.argv = ['{command}', *sys.argv[1:]]\nentry.load()()"
    )
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return call([str(python), "-c", script, *argv], cwd=cwd, env=environ)


# The wheel


def test_the_wheel_holds_the_package_and_every_configuration(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [f"ddpm_cli/{name}" for name in CONFIGS if f"ddpm_cli/{name}" not in names] == []
    assert "ddpm_cli/train.py" in names and "ddpm_cli/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert [name for name in names if name.startswith(("tests", "scripts", "configs", "outputs"))] == []


def test_a_wheel_from_the_source_archive_is_the_same(wheel, tmp_path):
    shutil.unpack_archive(build("sdist", ROOT, tmp_path), tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    again = build("wheel", source, tmp_path / "again")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("command", ["ddpm-train", "ddpm-sample"])
def test_an_installed_wheel_works_in_an_empty_folder(installed, tmp_path, command):
    done = run_installed(installed, command, "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "num_steps:" in done.stdout
    done = run_installed(installed, command, "--info", "searchpath", cwd=tmp_path)
    assert str(installed.parent.parent) in done.stdout  # the wheel's own files, not this checkout's
    assert list(tmp_path.iterdir()) == []


def test_an_installed_wheel_refuses_in_one_line(installed, tmp_path):
    done = run_installed(installed, "ddpm-train", "sede=1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: unknown key sede; did you mean seed?\n")


def test_a_checkout_works_from_any_folder(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = call([sys.executable, "-m", "ddpm_cli.train", "--cfg", "job"], cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr


def test_the_version_stands_in_three_places_and_is_the_same():
    import ddpm_cli

    assert PYPROJECT["project"]["version"] == ddpm_cli.__version__
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == ddpm_cli.__version__


# Pinned versions and the checks before a commit


def test_every_dependency_is_pinned_by_name_and_version_alone():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    pinned = {line.partition("==")[0] for line in lines}
    extras = [name for names in PYPROJECT["project"]["optional-dependencies"].values() for name in names]
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["dev"], *extras]
    wanted = [name for name in wanted if not name.startswith("ddpm_cli[")]
    assert {re.split(r"[<>=!~ ]", name)[0] for name in wanted} <= pinned


def test_no_file_for_building_names_a_registry():
    for name in ("pyproject.toml", "constraints.txt", "scripts/run", ".ci/run", ".pre-commit-config.yaml"):
        assert "://" not in (ROOT / name).read_text(), name


def test_a_commit_is_checked_by_ruff_and_mypy_of_this_environment():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert [hook["entry"] for hook in repo["hooks"]] == ["scripts/run ruff check", "scripts/run mypy"]
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}


# scripts/run, with a stand-in for uv

UV = """#!/bin/sh
echo "$@" >>"$UV_LOG"
case $1 in
    --version) ;;
    venv) for target; do :; done; mkdir -p "$target/bin"; printf '#!/bin/sh\\necho "$PWD" "$@"\\n' >"$target/bin/hello"
        chmod +x "$target/bin/hello" ;;
    pip) sleep "${UV_SLEEP:-0}"; exit "${UV_CODE:-0}" ;;
esac
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own around scripts/run."""
    root, tools = tmp_path / "a project", tmp_path / "tools"
    (root / "scripts").mkdir(parents=True)
    tools.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts/run"):
        shutil.copy(ROOT / name, root / name)
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("UV_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def installs(tmp_path):
    """How often the stand-in installed something."""
    return lambda: (tmp_path / "log").read_text().count("pip install")


def test_the_environment_is_made_once_and_the_command_runs_where_it_was_typed(project, installs, tmp_path):
    for argument in ("a b", "c"):
        done = call([project / "scripts/run", "hello", argument])
        assert (done.returncode, done.stdout) == (0, f"{tmp_path} {argument}\n"), done.stderr
    assert installs() == 1
    assert "once" not in call([project / "scripts/run", "hello"]).stderr


def test_the_environment_follows_the_pinned_versions(project, installs):
    call([project / "scripts/run", "hello"])
    with open(project / "constraints.txt", "a") as file:
        file.write("hello==1\n")
    call([project / "scripts/run", "hello"])
    assert installs() == 2


def test_a_failed_or_interrupted_installation_is_made_again(project, installs, monkeypatch):
    monkeypatch.setenv("UV_CODE", "1")
    done = call([project / "scripts/run", "hello"])
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines()[-1] == "error: the installation failed"
    (project / ".venv/half-installed").touch()
    monkeypatch.setenv("UV_CODE", "0")
    assert call([project / "scripts/run", "hello"]).returncode == 0
    assert not (project / ".venv/half-installed").exists()
    assert installs() == 2


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock here")
def test_two_first_uses_at_once_make_one_environment(project, installs, monkeypatch):
    monkeypatch.setenv("UV_SLEEP", "0.5")
    start = time.perf_counter()
    both = [subprocess.Popen([project / "scripts/run", "hello"], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert all(process.communicate()[0] for process in both)
    assert installs() == 1
    assert time.perf_counter() - start < 30


def test_without_a_fitting_python_the_remedy_is_told(project, tmp_path, monkeypatch):
    (tmp_path / "tools/uv").unlink()
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
        (tmp_path / "tools" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "tools" / name).chmod(0o755)
    done = call([project / "scripts/run", "hello"])
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: no Python 3.11 to 3.13")
    monkeypatch.setenv("PYTHON", "nothing")
    assert "PYTHON=nothing" in call([project / "scripts/run", "hello"]).stderr


def test_no_command_is_a_question_for_one(project):
    done = call([project / "scripts/run"])
    assert (done.returncode, done.stderr[:7]) == (2, "error: ")
