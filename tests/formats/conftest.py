"""Models of diffusers with random weights, made and saved by diffusers itself; a run of ours with random weights."""

import logging

import pytest
import torch
from commands import run
from foreign import SMALL


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    logging.getLogger("diffusers").setLevel(logging.ERROR)


@pytest.fixture
def saved(tmp_path):
    """saved(unet, scheduler): a folder as diffusers saves it, and the pipeline."""
    diffusers = pytest.importorskip("diffusers")

    def save(unet=SMALL, scheduler=None, name="foreign"):
        torch.manual_seed(0)
        network = diffusers.UNet2DModel(**{k: v for k, v in unet.items() if k[0] != "_"}).eval()
        for parameter in network.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, parameter.mean().item(), 0.1)
        given = {k: v for k, v in (scheduler or {}).items() if k[0] != "_"}
        made = getattr(diffusers, (scheduler or {}).get("_class_name", "DDPMScheduler"))(**given)
        pipeline = diffusers.DDPMPipeline(unet=network, scheduler=made)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(tmp_path / name)
        return tmp_path / name, pipeline

    return save


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(*overrides): the folder of a run of one step, its averages made random so that every branch counts."""
    place, known = tmp_path_factory.mktemp("runs"), {}

    def train(*overrides):
        if overrides not in known:
            folder = place / str(len(known))
            run("train", *overrides, "training.num_steps=1", f"run_dir={folder}", "device=cpu", cwd=place)
            known[overrides] = _awake(folder)
        return known[overrides]

    return train


def _awake(folder):
    from ddpm_cli.run_dir import checkpoint

    (file,) = folder.glob("checkpoints/*.pt")
    content = checkpoint.load(file)
    numbers = torch.Generator().manual_seed(0)
    for name, tensor in content["emas"]["ema"].items():
        if tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=numbers) * (0.5 / tensor[0].numel()) ** 0.5)
        elif name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=numbers) * 0.1)
    checkpoint.save(file, content)
    return folder
