"""The choices of training from the command line: what is refused, what is kept in a checkpoint, what resumes."""

import contextlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import TINY, tensors

from ddpm_cli import analytic, sample, train
from ddpm_cli.build.load import load_denoiser, load_trained
from ddpm_cli.config.compose import config_dir
from ddpm_cli.run_dir import checkpoint

REFUSED = {
    "epsilon at zero terminal SNR": ("prediction=epsilon schedule.zero_terminal_snr=true", "prediction=v"),
    "the mean without a table": ("prediction=mean schedule=edm", "prediction=edm"),
    "a bound over some times": ("loss=variational_bound timesteps=log_normal", "timesteps=stratified"),
    "times that never reach T": ("schedule.zero_terminal_snr=true timesteps=log_normal", "timesteps=stratified"),
    "a variance that nothing teaches": ("variance=learned_range", "loss=hybrid"),
    "a bound that teaches nothing": ("loss=hybrid", "variance=learned_range"),
    "a weighting that learns nothing": ("loss=variational_bound weighting=uncertainty", "weighting=v"),
    "a variance yet to be measured": ("variance=analytic", "ddpm-analytic"),
    "a step out of noise that noise is predicted for": ("loss=consistency prediction=epsilon", "prediction=v"),
    "a level that no other is next to": ("loss=consistency schedule.zero_terminal_snr=true", "zero_terminal_snr=false"),
    "augmentations that are not told": ("training.augment=0.1", "model=ddpmpp_cifar10"),
    "a table that rises": ("schedule=table schedule.path=rising.txt", "schedule.holds=beta"),
    "a table that is not there": ("schedule=table schedule.path=none.txt", "schedule.path"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choices")
    (folder / "rising.txt").write_text("0.5\n0.6\n")
    return folder


def run(command, *arguments, cwd, check=True):
    """The console script in this process: a process of its own takes seconds to import torch."""
    out, err = io.StringIO(), io.StringIO()
    code, doors = 0, {"train": train, "sample": sample, "analytic": analytic}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [f"ddpm-{command}", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                doors[command].main()
            except SystemExit as stop:
                code = stop.code or 0
    assert not check or code == 0, err.getvalue()
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(place, case):
    line, remedy = REFUSED[case]
    tiny = [text for text in TINY if not ("table" in line and text.startswith("schedule."))]
    done = run("train", *tiny, *line.split(), "training.num_steps=1", "run_dir=refused", cwd=place, check=False)
    assert done.returncode == 2, done.stderr
    begun, error, *rest = done.stderr.splitlines()
    assert begun.startswith("preparing ") and error.startswith("error: ") and len(rest) <= 2 and remedy in done.stderr
    assert not (place / "refused" / "checkpoints").exists()


@pytest.mark.parametrize(
    "choices",
    [
        "loss=variational_bound timesteps=loss_second_moment timesteps.history=1",
        "weighting=uncertainty schedule=edm prediction=edm timesteps=log_normal",
        "model=ddpmpp_cifar10 model.dropout=0 training.augment=0.5",
        "optimizer=muon training.freeze=[down_blocks]",
        "model=edm2_digits model.dropout=0.2 optimizer=edm2 ema=power weighting=uncertainty schedule=edm prediction=v",
        "model=edm2_cifar10 optimizer=muon training.freeze=[encoder] model.checkpointing=true model.head_channels=8",
        "loss=consistency sampler=consistency model.dropout=0.2 loss.num_stages=4 training.micro_batch_size=4",
        "model=dit_small model.channels=16 model.depth=4 model.routing=0.5 training.micro_batch_size=4",
    ],
)
def test_what_learns_beside_the_network_is_resumed_bit_for_bit(place, choices):
    name = choices.split()[0].replace("=", "_")
    of_network = "model." if "model=dit" in choices else "patch_size"
    tiny = [text for text in TINY if of_network not in text] if "model=" in choices else TINY
    arguments = [*tiny, *choices.split(), "training.num_steps=12", "schedule.num_timesteps=20"]
    run("train", *arguments, f"run_dir={name}_whole", cwd=place)
    run("train", *arguments, f"run_dir={name}_parts", "training.stop_at=7", cwd=place)
    run("train", f"resume={name}_parts", cwd=place)
    whole, parts = (
        checkpoint.load(place / f"{name}_{kind}/checkpoints/step_00000012.pt") for kind in ("whole", "parts")
    )
    mine, theirs = tensors(whole), tensors(parts)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    if "second" in choices:
        assert whole["learned"]["timesteps"]["counts"].sum() == 12 * 8
    if "uncertainty" in choices:
        assert whole["learned"]["weighting"]["weight"].abs().sum() > 0
    if "edm2_digits" in choices:
        size = whole["network"]["conv_first.weight"].square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(size, torch.ones_like(size), rtol=0, atol=2e-4)
    if "consistency" in choices:
        done = run("sample", f"ckpt={name}_whole", "num_images=2", "sampler.num_steps=2", cwd=place)
        assert "sampler=consistency sampler.num_steps=2" in done.stderr
        done = run("sample", f"ckpt={name}_whole", "num_images=2", "sampler=consistency", cwd=place)
        assert "was tuned" not in done.stderr
        assert (place / done.stdout.splitlines()[-1] / "images/000001.png").exists()


def test_a_table_is_kept_in_the_checkpoint(place):
    values = torch.linspace(0.99, 0.01, 20).tolist()
    (place / "table.txt").write_text("\n".join(map(str, values)))
    tiny = [text for text in TINY if not text.startswith("schedule.")]
    table = ["schedule=table", "schedule.path=table.txt", "schedule.zero_terminal_snr=true"]
    run("train", *tiny, *table, "training.num_steps=2", "run_dir=table", cwd=place)
    (place / "table.txt").unlink()
    denoiser = load_denoiser(place / "table/checkpoints/step_00000002.pt")
    assert denoiser.schedule.num_timesteps == 20 and denoiser.schedule.zero_terminal_snr
    assert float(denoiser.schedule.alpha_bar[1]) == pytest.approx(0.99)
    run("train", "resume=table", "training.num_steps=3", cwd=place)


def test_analytic_variance_is_measured_stored_and_drawn_with(place):
    run("train", *TINY, "training.num_steps=3", "run_dir=fixed", cwd=place)
    draw = ["ckpt=fixed", "num_images=2", "sampler=ancestral", "sampler.num_steps=4", "variance=analytic"]
    done = run("sample", *draw, cwd=place, check=False)
    assert done.returncode == 2 and "ddpm-analytic" in done.stderr
    before = tensors(checkpoint.load(place / "fixed/checkpoints/step_00000003.pt"))
    done = run("analytic", "ckpt=fixed", "num_images=20", "num_levels=5", "batch_size=8", cwd=place)
    file = Path(done.stdout.splitlines()[-1])
    content = checkpoint.load(file if file.is_absolute() else place / file)
    estimate = content["analytic"]["ema"]
    assert len(estimate["log_snr"]) == 5 and (estimate["noise_error"] > 0).all()
    assert all(torch.equal(before[key], tensor) for key, tensor in tensors(content).items() if key in before)
    assert [line for line in done.stderr.splitlines() if "measured" in line][-1].endswith("measured 20 of 20 images")
    assert "%|" not in done.stderr, "a bar is for terminals"
    run("sample", *draw, cwd=place)
    assert not (place / ".hydra").exists()


def test_measuring_on_more_images_than_there_are_is_said_in_a_few_lines(place):
    run("train", *TINY, "training.num_steps=3", "dataset.num_images=12", "run_dir=few", cwd=place)
    done = run("analytic", "ckpt=few", "num_images=60", "num_levels=2", "batch_size=2", cwd=place)
    assert "num_images=60 is more than the 12 images of the data set: they are used again" in done.stderr
    assert sum("measured" in line for line in done.stderr.splitlines()) == 10


SIZES = {"ddpm": 35_746_307, "improved_ddpm": 52_546_438, "edm": 55_733_891, "v_min_snr": 35_746_307}
SIZES["edm2_cifar10"] = 54_610_466


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(config_dir(), "experiment").glob("*.yaml")))
def test_every_experiment_states_its_command_result_and_size(place, name):
    lines = Path(config_dir(), "experiment", f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[1] == f"# ddpm-train experiment={name}" and lines[2].startswith("# ")
    done = run("train", f"experiment={name}", "dry_run=true", "hydra.mode=RUN", cwd=place)  # a search: of one job
    plan = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert int(plan["parameters"]) == SIZES.get(name, int(plan["parameters"]))


def test_every_schedule_and_prediction_trains_from_the_command_line(place):
    """A few lines that meet each option of each axis once (every combination: tests/diffusion/test_combinations.py)."""
    options = {
        "schedule": "linear scaled_linear quadratic constant sigmoid laplace cosine_log_snr edm".split(),
        "prediction": "epsilon x0 v mean".split(),
        "weighting": "epsilon x0 v min_snr soft_min_snr p2 edm uncertainty".split(),
        "timesteps": "uniform stratified log_normal loss_second_moment".split(),
        "loss": ["denoising", "denoising loss.huber_delta=0.5"],
    }
    for i in range(8):
        chosen = {axis: names[(i + i // len(names)) % len(names)] for axis, names in options.items()}
        if chosen["schedule"] == "edm":
            chosen["prediction"] = "edm"
        line = " ".join(f"{axis}={name}" for axis, name in chosen.items()).split()
        run("train", *TINY, *line, "training.num_steps=3", f"run_dir=each_{i}", cwd=place)
    assert len(list(place.glob("each_*/checkpoints/step_00000003.pt"))) == 8


def test_averages_of_any_length_are_drawn_with_after_a_run_that_kept_snapshots(place):
    power = ["ema=power", "ema.snapshots=6", "training.num_steps=12", "training.sample_every=0"]
    run("train", *TINY, *power, "run_dir=power", cwd=place)
    names = sorted(path.name for path in (place / "power/averages").iterdir())
    assert names == [f"step_{step:08d}.pt" for step in range(2, 13, 2)]
    run("train", *TINY, *power, "run_dir=power_parts", "training.stop_at=7", cwd=place)
    run("train", "resume=power_parts", cwd=place)
    for name in names:
        assert (place / "power/averages" / name).read_bytes() == (place / "power_parts/averages" / name).read_bytes()
    kept = checkpoint.load(place / "power/checkpoints/step_00000012.pt")["emas"]
    assert sorted(kept) == ["ema", "ema@0.1"]
    rebuilt = load_trained(place / "power", "ema@0.1000").denoiser.network.state_dict()
    for key, value in kept["ema@0.1"].items():
        torch.testing.assert_close(rebuilt[key], value, rtol=2e-3, atol=2e-4)  # of half-precision snapshots
    run("sample", "ckpt=power", "weights=ema@0.08", "num_images=2", "sampler.num_steps=2", cwd=place)
    run("train", *TINY, "training.num_steps=1", "training.sample_every=0", "run_dir=plain", cwd=place)
    done = run("sample", "ckpt=plain", "weights=ema@0.08", "num_images=2", cwd=place, check=False)
    assert done.returncode == 2 and "trained with ema=power" in done.stderr
