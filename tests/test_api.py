"""The commands as functions of Python: the README's lines, the command's own pixels, errors that are exceptions."""

import gc
import io
import re
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TINY, run
from hydra import compose, initialize_config_dir

from ddpm_cli import api
from ddpm_cli.errors import UserError
from ddpm_cli.system import progress

ROOT = Path(__file__).resolve().parent.parent
DRAW = {"sampler.num_steps": 3, "guidance.scale": 2.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python") / "a run"
    assert api.train([*TINY, "training.num_steps=10", f"run_dir={folder}"]) == folder
    return folder


@pytest.fixture(scope="module")
def drawn(trained):
    """What ddpm-sample draws: (N, C, H, W)."""
    typed = [f"{key}={value}" for key, value in DRAW.items()]
    typed += [f"ckpt={trained}", "num_images=6", "seed=3", "labels=[2,0]", "out_dir=out"]
    run("sample", *typed, cwd=trained.parent)
    return np.moveaxis(np.load(trained.parent / "out" / "samples.npz")["images"], -1, 1)


def test_the_readmes_lines_run_as_they_stand(tmp_path, monkeypatch, capsys):
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### From Python\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace('"training.num_steps": 300', '"training.num_steps": 2, "sampler.num_steps": 2'), names)
    assert names["run"].parent.parent == tmp_path / "outputs"
    images, x_0 = names["images"], names["x_0"]
    assert images.shape == (16, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images, names["same"]) and x_0.shape == (2, 1, 8, 8)
    assert capsys.readouterr().out == ""  # which is the program's own


def test_generate_gives_the_pixels_of_ddpm_sample_from_a_path_and_from_a_denoiser(trained, drawn):
    denoiser = api.load_denoiser(trained)
    before = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    for model in (trained, denoiser, str(next((trained / "checkpoints").iterdir()))):
        images = api.generate(model, 6, labels=[2, 0], seed=3, settings=DRAW)
        assert np.array_equal(images.numpy(), drawn)
    assert not np.array_equal(api.generate(denoiser, 6, labels=[2, 0], seed=4, settings=DRAW).numpy(), drawn)
    api.generate(denoiser, 2, settings={**DRAW, "precision": "bf16"})  # which draws with weights in bf16
    assert denoiser.amp_dtype is denoiser.network_dtype is None
    assert all(torch.equal(before[k], v) for k, v in denoiser.state_dict().items())


def test_a_denoiser_that_nobody_holds_is_gone(trained):
    denoiser = api.load_denoiser(trained)
    held = weakref.ref(denoiser)
    del denoiser
    gc.collect()
    assert held() is None


def test_labels_may_be_a_tensor(trained):
    first, second = (api.generate(trained, 2, labels=given, settings={"sampler.num_steps": 2}) for given in LABELS)
    assert torch.equal(first, second)


LABELS = ([3, 1], torch.tensor([3, 1]))


def test_a_run_goes_on_and_settings_may_be_nested_and_hold_any_text(trained, tmp_path):
    folder = tmp_path / "it's [a] run, null"
    tiny = dict(text.split("=", 1) for text in TINY if "[" not in text)
    numbers = {key: int(value) if value.isdigit() else value for key, value in tiny.items()}
    nested = {"model.channel_mult": [1, 2], "training": {"num_steps": 4, "keep_best": None}}
    assert api.train({**numbers, **nested, "run_dir": folder}) == folder
    assert api.train({"resume": folder, "training.num_steps": 6}) == folder
    assert (folder / "checkpoints" / "step_00000006.pt").exists()
    assert "training " in (folder / "train.log").read_text()


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda _: api.train({"sede": 1}), "unknown key sede; did you mean seed?"),
        (lambda _: api.train(["-m", "seed=1,2"]), "-m is a flag"),
        (lambda _: api.train("seed=1"), "settings are a dict or a list"),
        (lambda _: api.train({"experiment": "digits_search"}), "several runs need the command"),
        (lambda _: api.train(["dry_run=true"]), "dry_run=true"),
        (lambda run: api.generate(run, 0), "num_images must be"),
        (lambda run: api.generate(run, 2, labels=[99]), "99"),
        (lambda run: api.generate(run, 2, settings={"guidanse.scale": 2}), "guidanse"),
        (lambda run: api.generate(run / "nothing"), "nothing"),
        (lambda _: api.train(None), "not NoneType"),
        (lambda run: api.load_denoiser(run, device="cpuu"), "device=cpuu: must be one of auto, cpu"),
        (lambda run: api.generate(run, 2, settings={"num_images": 3}), "num_images has no place there"),
        (lambda run: api.generate(run, 2, settings={"threads": 1}), "threads has no place there"),
        (lambda run: api.generate(api.load_denoiser(run), settings={"lora": "x"}), "lora has no place there"),
        (lambda run: api.load_denoiser(run, weights="best"), "weights=best"),
        (lambda run: api.generate(api.Denoiser.__new__(api.Denoiser)), "load_denoiser gave"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_an_exception_with_the_commands_line(trained, tmp_path, monkeypatch, call, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(told)):
        call(trained)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_saves_and_is_keyboard_interrupt(tmp_path, monkeypatch):
    began = api.run_training

    def interrupted(*args):
        monkeypatch.setattr("ddpm_cli.training.journal.Journal.tick", lambda _: signal.raise_signal(signal.SIGINT))
        return began(*args)

    monkeypatch.setattr(api, "run_training", interrupted)
    with pytest.raises(KeyboardInterrupt, match="go on with resume="):
        api.train([*TINY, "training.num_steps=10", f"run_dir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "checkpoints" / "step_00000001.pt").exists()


def test_a_program_that_uses_hydra_itself_keeps_its_own(tmp_path, trained):
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert len(api.generate(trained, 2, settings={"sampler.num_steps": 2})) == 2
        assert compose("mine").answer == 42


def test_the_package_is_imported_without_torch_and_train_is_called_and_has_the_commands_main():
    code = (
        "import sys, ddpm_cli; assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
        "from ddpm_cli import train; assert 'torch' not in sys.modules and train.main\n"
        "import ddpm_cli.train as again; assert again is train\n"
        "from ddpm_cli import generate, load_denoiser\n"
        "try: train({'sede': 1})\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout == "unknown key sede; did you mean seed?\n", done.stderr


def test_a_bar_is_shown_where_somebody_looks_and_nothing_is_written_to_a_stream_that_is_closed(monkeypatch):
    closed, notebook = io.StringIO(), io.StringIO()
    closed.close()
    for stream in (None, closed, io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.progress_bar(total=2) as bar:
            bar.update()
        assert bar.disable
    monkeypatch.setattr(sys, "stderr", notebook)
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress.is_seen(notebook) and not progress.is_seen(closed)
