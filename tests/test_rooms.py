"""The rooms of the house, read from the source: who may import whom, no circles, and how long functions get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ddpm_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
DOORS = ("train", "sample", "eval", "analytic", "report", "export")

# Each room, from the ground up: what lives there, and the other rooms it may import.
ROOMS = {
    "errors": ("what a door tells in a line", ""),
    "seeding": ("randomness by position", ""),
    "system": ("this machine", "errors"),
    "diffusion": ("the mathematics", ""),
    "models": ("the networks", ""),
    "media": ("images, sounds, their files", "errors system"),
    "data": ("sets, prepared and loaded", "errors seeding system media"),
    "config": ("groups, composition, checks", "errors system"),
    "run_dir": ("a run on disk", "errors config system"),
    "results": ("what runs came to", "config run_dir system"),
    "report_page": ("runs as one HTML page", "errors config system results"),
    "formats": ("models as others keep them", "errors diffusion run_dir"),
    "cli": ("the command line", "errors config run_dir formats results report_page system"),
    "training": ("one step, the loop", "errors seeding system data diffusion"),
    "build": ("configuration to objects", "errors system media data diffusion models config run_dir formats training"),
    "sampling": ("denoiser to images", "errors seeding system media data diffusion config run_dir build"),
    "evaluation": (
        "how good images are",
        "errors seeding system media data diffusion config run_dir build sampling",
    ),
    "training_run": (
        "a run around the loop",
        "errors system media data diffusion config run_dir formats results training build sampling evaluation",
    ),
    "api": (
        "the commands as functions",
        "errors system diffusion config cli build sampling training_run",
    ),
    **dict.fromkeys(
        DOORS,
        ("a command line in, an exit code out", "cli config build sampling evaluation training_run report_page api"),
    ),
}
KNOWS_HYDRA = {*DOORS, "cli", "config"}
TORCH_FREE = {"cli", "config", "errors", "results", "report_page", *DOORS}
TORCH_FREE |= {f"run_dir.{name}" for name in ("find", "hydra_record", "result", "resume")}
TORCH_FREE |= {f"formats.{name}" for name in ("find", "header", "settings", "diffusers_config", "flags")}
TORCH_FREE |= {f"system.{name}" for name in ("signals", "launch_env", "lock", "files", "memory", "tree")}
HEAVY = {"torch", "torchvision", "numpy", "sklearn", "tensorboard"}
# What may be asked whether it has a name: an option's own code (in one place), other packages, the operating system.
ASKED = {"build.instantiate", "config.targets", "data.prepare.cache", "data.prepare.download", "data.prepare.pool"}
ASKED |= {"data.published", "data.torchvision_sets", "system.precision", "system.signals"}
FILELESS = {"hydra", "omegaconf", "tensorboard", "os", "pathlib", "shutil", "tempfile", "io", "tqdm", "yaml"}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room_of(file: Path) -> str:
    return name_of(file).split(".")[0]


def imports(file: Path, *, top_level: bool = False) -> Iterator[str]:
    """Full names of what a file imports: also inside functions and under TYPE_CHECKING, unless `top_level`."""
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
    """The modules of ours that a file imports, without the package's name."""
    modules = {name_of(other) for other in FILES} - {"__init__"}
    found = {name.removeprefix("ddpm_cli.") for name in imports(file) if name.startswith("ddpm_cli.")}
    return {name for name in found if name in modules and name != name_of(file)}


def foreign(file: Path, *, top_level: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(file, top_level=top_level)}


def picture() -> str:
    """The rooms as CONTRIBUTING.md shows them, the doors on top."""
    rows = []
    for room, (what, below) in reversed(ROOMS.items()):
        if room not in DOORS[1:]:
            name = "the doors" if room in DOORS else room
            rows.append(f"{name:<22}{what:<44}{below or '-'}")
    return "\n".join(rows)


def test_the_root_holds_doors_and_rooms_alone():
    assert {room_of(file) for file in FILES} == {*ROOMS, "__init__"}
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))]
    assert len(rooms) <= 16
    assert [room for room in rooms if len(list((PACKAGE / room).glob("*.py"))) > 16] == []


@pytest.mark.parametrize("file", [file for file in FILES if name_of(file) != "__init__"], ids=name_of)
def test_a_room_imports_what_the_table_allows(file):
    room = room_of(file)
    assert {name.split(".")[0] for name in own(file)} <= {room, *ROOMS[room][1].split()}


def test_the_table_names_no_room_that_is_not_used_and_lies_in_order():
    order = list(ROOMS)
    for room, (_, below) in ROOMS.items():
        assert [other for other in below.split() if order.index(other) >= order.index(room)] == [], room
        if room not in DOORS:
            used = {name.split(".")[0] for file in FILES if room_of(file) == room for name in own(file)} - {room}
            assert used == set(below.split()), room


def test_no_module_imports_itself_by_way_of_others():
    # A package's __init__ that hands on names of its own modules is no circle: they do not import it.
    TopologicalSorter({name_of(file): own(file) for file in FILES}).prepare()


def test_the_picture_in_contributing_is_the_table():
    assert picture() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), f"it should hold:\n{picture()}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_hydra_is_known_to_doors_config_and_cli_alone(file):
    assert room_of(file) in KNOWS_HYDRA or "hydra" not in foreign(file)


@pytest.mark.parametrize("file", [f for f in FILES if room_of(f) in ("diffusion", "models")], ids=name_of)
def test_diffusion_and_models_know_no_files_and_no_frameworks(file):
    assert not foreign(file) & FILELESS


@pytest.mark.parametrize("file", [f for f in FILES if {room_of(f), name_of(f)} & TORCH_FREE], ids=name_of)
def test_what_checks_the_command_line_imports_no_torch_at_the_top(file):
    assert not foreign(file, top_level=True) & HEAVY


def test_the_doors_are_short():
    for door in DOORS:
        assert len((PACKAGE / f"{door}.py").read_text(encoding="utf-8").splitlines()) <= 60, door


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_stay_readable(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


@pytest.mark.parametrize("file", [file for file in FILES if name_of(file) not in ASKED], ids=name_of)
def test_an_option_says_what_it_can_by_its_axis_protocol_and_is_never_asked(file):
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call):
            name = ast.unparse(call.func)
            assert name != "hasattr" and (name != "getattr" or len(call.args) == 2), ast.unparse(call)


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
