"""How large the activations and weights of a network are as it trains: what EDM2's layers are made to keep at one.

    python scripts/check_magnitudes.py RUN...     a line for each checkpoint that a run has kept

Of the training images at the run's own noise levels, with the weights as trained: the root mean square of what each
block puts out (mean over the blocks, and the smallest and largest), and that of the weights' vectors. Train with
training.checkpoint_every=100 training.keep_checkpoints=100.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_cli.build.load import load_trained
from ddpm_cli.build.trainer import build_data, build_objective
from ddpm_cli.diffusion.gaussian import diffuse
from ddpm_cli.models.checkpointed import Checkpointed

COUNT = 500


def magnitude(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def vectors(network: nn.Module) -> Tensor:
    """The magnitudes of what each output of each layer is made of."""
    weights = [m.weight for m in network.modules() if isinstance(getattr(m, "weight", None), Tensor)]
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    rows = [w.T if id(w) in tables else w.flatten(1) for w in weights if w.ndim > 1]
    return torch.cat([w.square().mean(1).sqrt() for w in rows])


@torch.no_grad()
def measure(path: Path) -> str:
    """A line of figures of one checkpoint."""
    trained = load_trained(path, "raw")
    denoiser, store = trained.denoiser, build_data(trained.config)
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[:COUNT]
    x_0 = store.to_model(store.items[rows])
    cond = None if store.labels is None else {"labels": torch.as_tensor(store.labels[rows])}
    t, _ = build_objective(trained.config, denoiser)[1]((torch.arange(COUNT) + 0.5) / COUNT, denoiser.schedule)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    seen: list[float] = []

    def look(module: nn.Module, args: Any, out: Tensor) -> None:
        seen.append(magnitude(out))

    for module in denoiser.network.modules():
        if isinstance(module, Checkpointed):
            module.register_forward_hook(look)
    denoiser(diffuse(x_0, noise, denoiser.schedule.level(t)), t, cond)
    sizes = vectors(denoiser.network)
    mean = sum(seen) / len(seen)
    blocks = " ".join(f"{value:.2f}" for value in seen)
    return (
        f"step {trained.step:6}: blocks {mean:.3f} ({min(seen):.3f} to {max(seen):.3f}), "
        f"weights {float(sizes.median()):.4f} ({float(sizes.min()):.4f} to {float(sizes.max()):.4f}) | {blocks}"
    )


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    for run in sys.argv[1:]:
        print(run)
        for file in sorted(Path(run, "checkpoints").glob("step_*.pt")):
            print(f"  {measure(file)}")
