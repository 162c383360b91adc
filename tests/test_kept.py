"""Checkpoints that this version must read for ever: one of each format, written when that format was new.

`python tests/test_kept.py` writes those of the format of now, when it is another; a kept file is never written anew.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_cli.api import generate, load_denoiser, train
from ddpm_cli.run_dir import checkpoint

KEPT = Path(__file__).resolve().parent / "kept"
FILES = sorted(KEPT.glob("*.pt"))
RUN = (
    "dataset=shapes dataset.num_images=100 dataset.image_size=8 dataset.channels=1 training.batch_size=8 "
    "training.log_every=5 training.sample_every=0 training.heldout_every=0 training.num_steps=20 training.stop_at=10 "
    "schedule.num_timesteps=50 sampler.num_steps=3 optimizer.warmup_steps=5 device=cpu precision=fp32 threads=1"
).split()
NETWORKS = {  # small, of few tensors
    "cnn": "model=cnn model.channels=[4,8]",
    "unet": "model=unet_small model.channels=4 model.patch_size=1 model.channel_mult=[1] model.blocks_per_level=1 "
    "model.attention_levels=[] optimizer=sgd optimizer.momentum=0 optimizer.nesterov=false",
}


def found_of(file: Path, folder: Path) -> dict[str, np.ndarray]:
    """What the checkpoint is good for, in numbers: a denoiser's estimates, images, and the loss that a run gone on with
    ends in."""
    denoiser = load_denoiser(file)
    x_t, t = torch.linspace(-2, 2, 3 * 64).reshape(3, 1, 8, 8), torch.tensor([1, 25, 50])
    x_0 = denoiser(x_t, t, {"labels": torch.tensor([0, 3, 4])}).x_0  # the null label too
    images = generate(file, 4, labels="each", seed=5, settings={"sampler.num_steps": 4, "device": "cpu"})
    run = train({"resume": file, "run_dir": folder})
    last = checkpoint.load(run / "checkpoints" / "step_00000020.pt")["progress"]["last"]
    return {"x_0": x_0.numpy(), "images": images.numpy(), "loss": np.array(last["loss"])}


def test_there_is_one_of_this_format():
    assert {f"format_{checkpoint.FORMAT}_{name}" for name in NETWORKS} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_kept_checkpoint_draws_and_goes_on_as_when_it_was_written(file, tmp_path):
    was, now = np.load(file.with_suffix(".npz")), found_of(file, tmp_path / "run")
    assert np.allclose(now["x_0"], was["x_0"], rtol=1e-3, atol=1e-3)  # another machine rounds otherwise
    assert np.abs(now["images"].astype(int) - was["images"]).max() <= 2
    assert now["loss"] == pytest.approx(was["loss"], rel=1e-2)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_kept_checkpoint_begins_another_run(file, tmp_path):
    few = [text for text in RUN if not text.startswith(("training.num_steps", "training.stop_at"))]
    begun = train([*few, f"init={file}", "training.num_steps=1", "dataset.flip=true", f"run_dir={tmp_path / 'run'}"])
    own, kept = (load_denoiser(path, "raw").network.state_dict() for path in (begun, file))
    assert own.keys() == kept.keys() and all(torch.allclose(own[key], kept[key], atol=0.1) for key in own)


def main() -> None:
    for name, network in NETWORKS.items():
        file = KEPT / f"format_{checkpoint.FORMAT}_{name}.pt"
        if file.exists():
            sys.exit(f"{file} is there, and stays as it is")
        shutil.copy(train([*RUN, *network.split()]) / "checkpoints" / "step_00000010.pt", file)
        np.savez(file.with_suffix(".npz"), **found_of(file, Path("outputs") / name))


if __name__ == "__main__":
    main()
