"""A trained denoiser out of a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ddpm_cli.build.adapter import merged, open_adapter
from ddpm_cli.build.autoencoder import is_of_latents, network_of, remember
from ddpm_cli.build.averages import rebuilt
from ddpm_cli.build.model import Config, build_denoiser, null_label
from ddpm_cli.config.stored import check_stored
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.errors import UserError
from ddpm_cli.formats.opened import open_model
from ddpm_cli.run_dir.checkpoint import Content, Weights


@dataclass(frozen=True)
class Trained:
    """A denoiser out of a checkpoint, and what the checkpoint says of itself."""

    path: Path  # of the file that was read: of a run, maybe not its newest
    denoiser: Denoiser
    variance: Variance  # what a sampler takes for sigma_theta: the denoiser's own, until another is put in its place
    config: Config
    step: int
    measured: dict[str, torch.Tensor] | None = None  # what ddpm-analytic found for these weights
    class_names: tuple[str, ...] = ()  # empty for an unconditional network, and where the file does not say
    adapted: Weights | None = None  # the weights with their adapters apart, where there are any
    lora: Path | str | None = None  # the file of adapters beside it, if one is named

    @property
    def told(self) -> str:
        """What was read, and the step that it is of: with a file of adapters, theirs."""
        beside = "" if self.lora is None else f" with the adapters of {self.lora}"
        return f"{self.path}{beside} (step {self.step})"


def load_trained(
    ckpt: Path | str,
    weights: str = "ema",
    trust: Sequence[str] = (),
    *,
    key: str = "ckpt",
    lora: Path | str | None = None,
) -> Trained:
    """The trained denoiser that `latest`, a run, a file or a folder of diffusers names, on the CPU, in eval mode.

    weights: `ema`, `raw`, or `ema@LENGTH`, an average rebuilt from the run's snapshots. trust: packages whose classes
    its configuration may name. What the checkpoint itself says of trust is void, else a file could vouch for the code
    that it wants to be run. lora: a file of adapters that were trained on this model. Adapters are merged into the
    weights, so that the denoiser knows of none.
    """
    path, content, _ = open_model(ckpt, key=key)
    check_stored(content["config"], path)  # before anything is built of it
    remember(content, path)
    saved = _weights_of(content, path, weights)
    if lora is not None:
        content = open_adapter(lora, merged(saved, content["config"], path))
        saved = content["emas"]["ema"]
    cfg = {**content["config"], "trust": list(trust)}
    if is_of_latents(cfg):
        network_of(cfg["representation"])  # refused now, and not when all is drawn
    denoiser = build_denoiser(cfg)
    load_weights(denoiser.network, merged(saved, cfg, path), path)
    denoiser.eval().requires_grad_(False)
    measured = content.get("analytic", {}).get(weights)
    names, adapted = _class_names(content, denoiser), None if cfg.get("adapter") is None else saved
    return Trained(path, denoiser, denoiser.variance, cfg, content["step"], measured, names, adapted, lora)


def load_denoiser(ckpt: Path | str) -> Denoiser:
    """The trained denoiser of a checkpoint (EMA weights, eval mode, CPU), ready to be called as (x_t, t, cond)."""
    return load_trained(ckpt).denoiser


def load_weights(network: nn.Module, saved: dict[str, torch.Tensor], path: Path | str) -> None:
    """Strict; UserError names up to three entries that do not fit, and the network is left as it was.

    torch's own strict loading has copied what fits by the time it raises, and lists every entry of a large network.
    """
    mine = network.state_dict()
    wrong = [k for k in mine if k not in saved] + [k for k in saved if k not in mine]
    wrong += [
        f"{k} {tuple(saved[k].shape)} for {tuple(mine[k].shape)}"
        for k in mine
        if k in saved and saved[k].shape != mine[k].shape
    ]
    if wrong:
        raise UserError(f"{path} does not fit this network: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
    network.load_state_dict(saved)


def _weights_of(content: Content, path: Path, weights: str) -> Weights:
    saved = content["network"] if weights == "raw" else content["emas"].get(weights)
    if saved is None and "@" not in weights:
        raise UserError(f"weights={weights} are not in {path}; it holds raw, {', '.join(content['emas'])}")
    return rebuilt(path, content["step"], float(weights.partition("@")[2])) if saved is None else saved


def _class_names(content: Content, denoiser: Denoiser) -> tuple[str, ...]:
    """The data's names of classes, on one line each; none where they do not fit the network, as in a foreign file."""
    data = content.get("data")
    names = data.get("class_names") if isinstance(data, dict) else None
    fit = isinstance(names, list) and len(names) == null_label(denoiser.network)
    return tuple(" ".join(str(name).split()) for name in names) if names and fit else ()
