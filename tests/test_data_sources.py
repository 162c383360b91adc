"""Files of every kind from the command line alone: the README's lines, what is drawn from them, and resumed runs."""

import io
import json
import re
import shlex
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run, tensors
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    "model.channels=8 model.patch_size=1 model.channel_mult=[1,2] model.blocks_per_level=1 training.batch_size=8 "
    "training.num_steps=6 training.log_every=3 training.sample_every=6 training.checkpoint_every=3 "
    "training.num_samples=4 sampler.num_steps=3 schedule.num_timesteps=50 precision=fp32"
).split()
SECTION = ROOT.joinpath("README.md").read_text(encoding="utf-8").partition("### Other files of images")[2]
LINES = [line.partition("#")[0].strip() for line in SECTION.partition("```\n")[2].partition("```")[0].splitlines()]
COUNT = 24


def pixels(number, channels=3, dtype=np.uint8, size=(10, 12)):
    """Of image `number`: noise about a grey that tells it from the others."""
    top = np.iinfo(dtype).max
    noise = np.random.default_rng(number).integers(0, top // 4, (*size, channels))
    return (noise + number * (top // 2) // COUNT).astype(dtype).squeeze()


def png(number, **kind):
    content = io.BytesIO()
    Image.fromarray(pixels(number, **kind)).save(content, "PNG")
    return content.getvalue()


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The files that the README's lines name."""
    place = tmp_path_factory.mktemp("sources")
    (place / "examples").symlink_to(ROOT / "examples")
    with zipfile.ZipFile(place / "photos.zip", "w") as archive:
        for k in range(COUNT):
            archive.writestr(f"photos/{('cat', 'dog')[k % 2]}/{k:02}.png", png(k))
    (place / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(place / f"shards/train-{shard}.tar", "w") as archive:
            for k in range(shard, COUNT, 2):
                add(archive, f"{k:04}.png", png(k))
                add(archive, f"{k:04}.cls", str(k % 3).encode())
    shutil.copytree(place / "shards", place / "terabytes")
    (place / "scans").mkdir()
    for k in range(COUNT):
        (place / f"scans/{k:02}.png").write_bytes(png(k, channels=1, dtype=np.uint16))
    fields = np.random.default_rng(0).normal(size=(COUNT, 16, 24, 2)).cumsum(1) * [1, 30] + [0, 250]
    np.savez(place / "fields.npz", images=fields.astype(np.float32), labels=np.arange(COUNT) % 2)
    return place


def arguments(line):
    """Command, arguments of a README's line, and what stands before."""
    before, _, rest = line.partition("ddpm-")
    command, *words = shlex.split(rest)
    return command, words, before.strip()


@pytest.fixture(scope="module")
def train(place):
    """What trains by a README's line, once."""
    done: dict[str, Path] = {}

    def of(kind):
        if kind not in done:
            (line,) = [line for line in LINES if kind in line]
            command, words, _ = arguments(line)
            run(command, *words, *TINY, f"run_dir=runs/{len(done)}", cwd=place)
            done[kind] = place / f"runs/{len(done)}"
        return done[kind]

    return of


def draw(place, folder):
    out = f"drawn_{folder.name}"
    run("sample", f"ckpt={folder}", "num_images=5", "sampler.num_steps=3", f"out_dir={out}", cwd=place)
    with np.load(place / out / "samples.npz") as arrays:
        return place / out, dict(arrays)


KINDS = ["photos.zip", "root=shards", "prepare=false", "root=scans", "fields.npz", "dataset=parquet", "stripes"]


def test_there_is_a_test_of_every_line():
    assert [kind for line in LINES for kind in KINDS if kind in line] == KINDS and len(LINES) == len(KINDS)


@pytest.mark.parametrize(
    ("kind", "shape", "classes"), [("photos.zip", (32, 32, 3), 2), ("root=shards", (32, 32, 3), 3)]
)
def test_archives_train_and_sample(place, train, kind, shape, classes):
    folder = train(kind)
    out, arrays = draw(place, folder)
    assert arrays["images"].shape == (5, *shape) and arrays["images"].dtype == np.uint8
    assert arrays["labels"].max() < classes
    assert f"num_classes: {classes}" in (folder / "config.yaml").read_text()
    assert (out / "images/000004.png").exists()


def test_what_is_decoded_on_demand_trains_the_same_weights_and_keeps_nothing(place, train):
    before = sorted(path.name for path in (place / "terabytes").rglob("*"))
    folders = [train(kind) for kind in ("root=shards", "prepare=false")]
    first, second = (tensors(torch.load(f / "checkpoints/step_00000006.pt", weights_only=True)) for f in folders)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    draw(place, folders[1])
    assert sorted(path.name for path in (place / "terabytes").rglob("*")) == before
    knobs = ["num_images=8", "sampler.num_steps=3", "features.num_steps=2", "metrics=[fid,memorisation]"]
    run(*"train dataset=image_folder dataset.root=terabytes dataset.prepare=false dataset.split=train".split(), *TINY,
        "run_dir=demanded", cwd=place)  # fmt: skip
    run("eval", "ckpt=demanded", *knobs, "out_dir=of_demanded", cwd=place)
    assert "memorisation_pixels" in json.loads((place / "of_demanded/evaluation.json").read_text())["metrics"]
    run("eval", "ckpt=demanded", *knobs[:3], "metrics=[fid]", "data=terabytes", "out_dir=of_all", cwd=place)
    assert not list((place / "terabytes").rglob("items.npy"))
    knobs[3] = "metrics=[memorisation]"
    done = run("eval", f"ckpt={folders[1]}", *knobs, "out_dir=of_others", cwd=place, check=False)
    assert done.returncode == 2 and "train with dataset.split=train" in done.stderr


def test_images_of_sixteen_bits_are_drawn_in_sixteen(place, train):
    out, arrays = draw(place, train("root=scans"))
    assert arrays["images"].dtype == np.uint16 and arrays["images"].shape == (5, 32, 32, 1)
    with Image.open(out / "images/000003.png") as image:
        assert np.array_equal(np.asarray(image), arrays["images"][3, :, :, 0])
    assert len(np.unique(arrays["images"])) > 256
    with Image.open(out / "grid.png") as grid:
        assert grid.mode == "L"


def test_floats_of_two_channels_are_drawn_in_their_own_range(place, train):
    out, arrays = draw(place, train("fields.npz"))
    images = arrays["images"]
    with np.load(place / "fields.npz") as given:
        low, high = (f(given["images"], (0, 1, 2)) for f in (np.min, np.max))
    assert images.dtype == np.float32 and images.shape == (5, 16, 24, 2)
    assert (images >= low - 1e-3).all() and (images <= high + 1e-3).all()
    assert (images.max((0, 1, 2)) - images.min((0, 1, 2)) > 0.1 * (high - low)).all()  # of both channels
    assert np.array_equal(np.load(out / "images/000002.npy"), images[2])
    with Image.open(out / "grid.png") as grid:
        assert grid.mode == "L" and grid.width > grid.height  # two channels side by side


def test_what_interrupted_drawing_is_completed_from_the_files(place, train):
    for kind, name in (("fields.npz", "000001.npy"), ("root=scans", "000001.png")):
        out, arrays = draw(place, train(kind))
        (out / "samples.npz").unlink()
        (out / "images" / name).unlink()
        _, again = draw(place, train(kind))
        assert np.array_equal(arrays["images"], again["images"])


@pytest.mark.parametrize("kind", ["photos.zip", "root=shards", "prepare=false", "root=scans", "fields.npz"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(place, train, kind):
    whole = train(kind)
    command, words, _ = arguments(next(line for line in LINES if kind in line))
    stopped = place / f"stopped_{whole.name}"
    run(command, *words, *TINY, "training.stop_at=4", f"run_dir={stopped}", cwd=place)
    run(command, f"resume={stopped}", cwd=place)
    contents = (torch.load(f / "checkpoints/step_00000006.pt", weights_only=True) for f in (whole, stopped))
    first, second = map(tensors, contents)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("kind", "data"), [("photos.zip", "shards"), ("root=scans", "scans"), ("fields.npz", "fields.npz")]
)
def test_numbers_are_of_the_trained_or_of_other_files(place, train, kind, data):
    knobs = ["num_images=8", "sampler.num_steps=3", "features.num_steps=2", "metrics=[fid]"]
    for more in ([], [f"data={data}"]):
        out = place / f"eval_{data}_{len(more)}"
        run("eval", f"ckpt={train(kind)}", *knobs, *more, f"out_dir={out}", cwd=place)
        assert json.loads((out / "evaluation.json").read_text())["metrics"]["fid"]["value"] >= 0
    done = run("eval", f"ckpt={train('fields.npz')}", *knobs, "data=photos.zip", cwd=place, check=False)
    assert done.returncode == 2 and "name other data" in done.stderr


def test_memorisation_of_arrays_knows_a_copy(place):
    command, words, _ = arguments(next(line for line in LINES if "fields.npz" in line))
    run(command, *words, *TINY, "dataset.split=train", "run_dir=held_out", cwd=place)
    knobs = ["num_images=8", "sampler.num_steps=3", "features.num_steps=2", "metrics=[memorisation]"]
    run("eval", "ckpt=held_out", *knobs, "out_dir=copies", cwd=place)
    assert "memorisation_pixels" in json.loads((place / "copies/evaluation.json").read_text())["metrics"]
    assert (place / "copies/memorisation.png").exists()
    done = run("eval", "ckpt=held_out", "metrics=[nll]", cwd=place, check=False)
    assert done.returncode == 2 and re.search(r"error: metrics: nll .* leave it out", done.stderr)


def test_a_class_of_the_users_own_trains_and_samples(place, monkeypatch):
    line = next(line for line in LINES if "stripes" in line)
    command, words, before = arguments(line)
    assert before == "PYTHONPATH=examples"
    monkeypatch.syspath_prepend(str(place / "examples"))
    run(command, *words, *TINY, "run_dir=own", cwd=place)
    run("sample", "ckpt=own", "trust=[stripes]", "num_images=4", "out_dir=own_drawn", cwd=place)
    with np.load(place / "own_drawn/samples.npz") as arrays:
        assert arrays["images"].shape == (4, 16, 16, 1)
    sys.modules.pop("stripes", None)


REFUSED = {
    "dataset=shapes dataset.image_size=[8,16]": "squares; give one number",
    "dataset=image_folder dataset.root=scans dataset.dtype=float32": "uint8 or uint16",
    "dataset=image_folder dataset.root=scans dataset.channels=2": "dataset.channels must be 1 (grey) or 3 (RGB)",
    "dataset=arrays dataset.root=none.npz": "dataset.root: none.npz does not exist",
    "dataset=arrays dataset.root=fields.npz dataset.range=[1]": "dataset.range must be",
    "dataset=arrays dataset.root=fields.npz dataset.range=[[0,1],[2,3],[4,5]]": "3 pairs, and the images 2 channels",
    "dataset=image_folder dataset.root=fields.npz": "fields.npz is no folder; choose dataset=arrays",
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_go_together_is_refused_and_leaves_nothing(place, line):
    done = run("train", *line.split(), *TINY, "run_dir=refused", cwd=place, check=False)
    assert done.returncode == 2 and REFUSED[line] in done.stderr and len(done.stderr.splitlines()) <= 4, done.stderr
    assert not (place / "refused").exists()


def test_the_same_command_goes_on_and_an_edit_starts_from_what_was_drawn(place, train):
    folder = shutil.copytree(train("fields.npz"), place / "again")
    command, words, _ = arguments(next(line for line in LINES if "fields.npz" in line))
    done = run(command, *words, f"run_dir={folder}", "resume=auto", "training.num_steps=8", cwd=place)
    assert "cannot change" not in done.stderr and (folder / "checkpoints/step_00000008.pt").exists()
    out, _ = draw(place, folder)
    edit = ["edit=sdedit", f"edit.image={out / 'images/000001.npy'}", "sampler.num_steps=4", "out_dir=edited"]
    run("sample", f"ckpt={folder}", *edit, cwd=place)
    assert (place / "edited/side_by_side.png").exists()


@pytest.mark.parametrize("disk", [False, True], ids=["parquet", "save_to_disk"])
def test_tables_train_and_sample_and_resume(place, disk):
    pyarrow = pytest.importorskip("pyarrow", reason='needs pip install "ddpm_cli[parquet]"')
    from pyarrow import parquet

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["tabby", "tiger", "lion"]}}
    columns = {
        "image": [{"bytes": png(k), "path": f"{k}.png"} for k in range(COUNT)],
        "label": [k % 2 for k in range(COUNT)],
    }
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    command, words, _ = arguments(next(line for line in LINES if "dataset=parquet" in line))
    folder = place / ("disk" if disk else "cats")
    folder.mkdir()
    if disk:
        words = ["dataset=parquet", "dataset.root=disk"]
        with pyarrow.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as stream:
            stream.write_table(table)
    else:
        for shard in range(2):
            parquet.write_table(table.slice(shard * 12, 12), folder / f"train-{shard}.parquet")
        parquet.write_table(table, folder / "test-0.parquet")
        done = run(command, "dataset=parquet", "dataset.root=cats", *TINY, cwd=place, check=False)
        assert done.returncode == 2 and "dataset.files='train*'" in done.stderr
    run(command, *words, *TINY, f"run_dir=whole_{folder.name}", cwd=place)
    assert "num_classes: 3" in (place / f"whole_{folder.name}/config.yaml").read_text()
    _, arrays = draw(place, place / f"whole_{folder.name}")
    assert arrays["images"].shape == (5, 32, 32, 3)
    run(command, *words, *TINY, "training.stop_at=4", f"run_dir=half_{folder.name}", cwd=place)
    run(command, f"resume=half_{folder.name}", cwd=place)
    ends = (place / f"{half}_{folder.name}/checkpoints/step_00000006.pt" for half in ("whole", "half"))
    first, second = (tensors(torch.load(end, weights_only=True)) for end in ends)
    assert all(torch.equal(first[key], second[key]) for key in first)
    knobs = ["num_images=8", "sampler.num_steps=3", "features.num_steps=2", "metrics=[fid]", f"data={folder.name}"]
    if disk:
        run("eval", f"ckpt=whole_{folder.name}", *knobs, "out_dir=eval_disk", cwd=place)
