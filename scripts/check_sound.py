"""What a model of spoken digits can be judged by: the representation, the classifier, and gaps that are filled.

scripts/run python scripts/check_sound.py data ROOT        the round trip of real recordings; how well the classifier,
                                                           trained on recordings 10 to 49, knows 5 to 9
scripts/run python scripts/check_sound.py gaps CKPT ROOT   a gap of 0.1 s filled, beside silence and noise
ROOT holds the recordings or their archive (dataset.root).
"""

import sys
import tempfile
from pathlib import Path

import torch

from ddpm_cli.build.load import load_trained
from ddpm_cli.build.model import build_medium, build_representation
from ddpm_cli.build.trainer import build_data
from ddpm_cli.config.check import configuration
from ddpm_cli.diffusion import samplers
from ddpm_cli.diffusion.editing import Inpaint
from ddpm_cli.diffusion.guidance import Guidance
from ddpm_cli.evaluation.cache import cache_dir_of
from ddpm_cli.evaluation.features.base import build_features
from ddpm_cli.evaluation.reference import held_out
from ddpm_cli.media.sounds import Sounds
from ddpm_cli.media.spectrogram import mel_distance
from ddpm_cli.sampling.edit_inputs import EditInputs
from ddpm_cli.sampling.pipeline import SamplingPipeline

FULL = 32767.0


def waveforms(root: str, cache: str, split: str) -> torch.Tensor:
    """(N, L) float32: the recordings themselves, by the representation that changes nothing."""
    words = ["dataset=fsdd", f"dataset.root={root}", f"dataset.cache={cache}", f"dataset.split={split}"]
    words += ["dataset.held_out=10", "representation=waveform", "representation.exponent=1.0", "model=unet1d"]
    return build_data(configuration("train", *words)).items[:, 0].float()


def check_data(root: str) -> None:
    with tempfile.TemporaryDirectory() as cache:
        real = waveforms(root, cache, "test")
        for words in (["representation=stft"], ["representation=waveform", "model=unet1d"]):
            cfg = configuration("train", "dataset=fsdd", f"dataset.root={root}", *words)
            made = build_representation(cfg)
            back = made.decode(made.encode(real).half().float(), real.shape[1])
            ratio = real.square().sum(1) / (real - back).square().sum(1).clamp_min(1e-20)
            decibels = 10 * ratio.log10()
            print(f"{words[0]}: {decibels.median():.1f} dB, at least {decibels.min():.1f} ({len(real)} sounds)")
        cfg = configuration(
            "train", "dataset=fsdd", f"dataset.root={root}", f"dataset.cache={cache}", "dataset.held_out=10"
        )
        node = {"_target_": "ddpm_cli.evaluation.features.classifier.classifier", "num_steps": 1400}
        features = build_features(node, build_data(cfg), torch.device("cpu"), [], cache_dir_of(cfg["dataset"]))
        unseen = held_out(cfg)
        assert unseen is not None
        store = unseen[0]
        found = features(store.to_file(store.items[:]))
        assert found.probabilities is not None and store.labels is not None
        right = (found.probabilities.argmax(1) == store.labels).float().mean()
        print(f"classifier: {100 * right:.1f} % of {len(store)} recordings it has not seen")


@torch.inference_mode()
def check_gaps(ckpt: str, root: str, count: int = 60) -> None:
    trained = load_trained(ckpt)
    medium = build_medium(trained.config)
    assert isinstance(medium, Sounds)
    with tempfile.TemporaryDirectory() as cache:
        here = {"root": root, "cache": cache, "split": "test"}
        store = build_data({**trained.config, "dataset": {**trained.config["dataset"], **here}})
    rows = torch.linspace(0, len(store) - 1, count).long()
    items = store.to_file(store.items[rows])
    real = items.float() / FULL
    first = round(0.15 * medium.sample_rate)
    last = first + round(0.1 * medium.sample_rate)
    mask = medium.masks({"gap": [0.15, 0.25]})
    inputs = EditInputs(medium, items, mask)
    assert store.labels is not None
    pipeline = SamplingPipeline(
        trained, samplers.DDIM(50, eta=1.0), torch.device("cpu"), 0, store.labels[rows].tolist(), True, Guidance(),
        edit=Inpaint(resample=5), inputs=inputs,
    )  # fmt: skip
    filled = medium.to_file(samplers.run(pipeline.walk(range(count)))).float() / FULL
    loudness = real[:, first:last].std(1, keepdim=True)
    others = {"filled": filled, "silence": real.clone(), "noise": real.clone()}
    others["silence"][:, first:last] = 0
    others["noise"][:, first:last] = torch.randn(count, last - first) * loudness
    loud = loudness[:, 0] > 0.01  # a gap in silence is filled by silence
    for name, some in others.items():
        distance = mel_distance(some[loud], real[loud], medium.sample_rate)
        print(f"{name}: log-mel distance {distance.mean():.4f} (over {int(loud.sum())} recordings)")
    nearer = {name: mel_distance(filled, real, medium.sample_rate) < mel_distance(some, real, medium.sample_rate)
              for name, some in others.items() if name != "filled"}  # fmt: skip
    print({name: f"nearer in {100 * found[loud].float().mean():.0f} %" for name, found in nearer.items()})


def main(words: list[str]) -> None:
    if words[:1] == ["data"] and len(words) == 2:
        return check_data(str(Path(words[1])))
    if words[:1] == ["gaps"] and len(words) == 3:
        return check_gaps(words[1], words[2])
    raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
