"""The floors of the house, read from the source: who may import what, and how long files and functions get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddpm_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
DOORS = {"analytic", "train", "sample", "evaluate", "export", "report"}
KNOWS_HYDRA = {*DOORS, "build", "config", "cli"}
FILELESS = {"hydra", "omegaconf", "tensorboard", "os", "pathlib", "shutil", "tempfile", "io", "tqdm", "yaml"}
GROUND = {"diffusion", "models", "data", "run_dir", "runtime", "seeding", "errors", "ending"}  # no floor below them
TORCH_FREE = {"argv", "config", "cli", "errors", "overrides", "preflight", "primary", "ranges", "reporting"}
TORCH_FREE |= {"analytic", "claim", "durations", "ending", "leftovers", "stored"}
TORCH_FREE |= {"remembered", "run_dir", "rules", "sample", "targets", "train", "validation"}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path, *, top_level: bool = False) -> Iterator[str]:
    """Full names of the modules a file imports, those inside functions too unless `top_level`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(file: Path) -> set[str]:
    """First-floor names (`diffusion`, `config`, ...) of our own modules that a file imports."""
    return {name.split(".")[1] for name in imports(file) if name.startswith("ddpm_cli.")} - {"__version__"}


def foreign(file: Path, *, top_level: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(file, top_level=top_level)}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_imports_a_door(file):
    if name_of(file) not in DOORS:
        assert not own(file) & DOORS


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_hydra_is_known_to_doors_build_config_and_cli_alone(file):
    if name_of(file) not in KNOWS_HYDRA:
        assert "hydra" not in foreign(file)


@pytest.mark.parametrize("file", [f for f in FILES if name_of(f).split(".")[0] in ("diffusion", "models")], ids=name_of)
def test_diffusion_and_models_know_no_files_and_no_frameworks(file):
    assert not foreign(file) & FILELESS


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_the_ground_floor_imports_nothing_above_it(file):
    floor = name_of(file).split(".")[0]
    if floor in GROUND:
        assert own(file) <= {floor, "seeding", "errors", "ending"}
    if floor in ("training", "evaluation"):
        assert not own(file) & {"build", "config", "cli", "preflight"}


@pytest.mark.parametrize("file", [file for file in FILES if name_of(file) in TORCH_FREE], ids=name_of)
def test_what_checks_the_command_line_imports_no_torch_at_the_top(file):
    assert not foreign(file, top_level=True) & {"torch", "torchvision", "numpy", "sklearn", "tensorboard"}


def test_the_doors_are_short():
    for file in FILES:
        if name_of(file) in DOORS:
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 60, file.name


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_stay_readable(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def test_no_pickle_and_no_unsafe_load_in_the_source():
    for file in FILES:
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            assert name != "torch.load" or keywords.get("weights_only") == "True", file.name
            assert name not in ("eval", "exec", "__import__", "os.system", "yaml.load"), f"{file.name}: {name}"
            assert not name.endswith(("instantiate", "get_method", "get_object")), f"{file.name}: {name}"
            assert keywords.get("allow_pickle", "False") == "False", f"{file.name}: {name}"
        assert not foreign(file) & {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}, file.name


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["mypy"]], ids=lambda command: command[0])
def test_the_source_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
