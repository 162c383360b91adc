"""The card of a model, README.md: what it is, how it is used, how it was made and how good it is known to be."""

import json
from pathlib import Path
from typing import Any

from ddpm_cli import __version__
from ddpm_cli.run_dir.find import run_of

Config = dict[str, Any]
_INPUTS = """Inputs: `sample`, `timestep` (float: what the network embeds, t - 1 of DDPM's schedules) and, with
classes, `class_labels`; the output is what the table below calls prediction. The whole configuration is with it, under
`ddpm_cli`.
"""
_USE = {
    "diffusers": """```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("NAME")
images = pipeline(num_inference_steps=50, use_clipped_model_output=True).images
```
""",
    "safetensors": """```
ddpm-sample ckpt=NAME
```
""",
    "lora": """The file holds adapters alone (LoRA); BASE is the model that they were trained on.

```
ddpm-sample ckpt=BASE lora=NAME
```
""",
    "onnx": f"`model.onnx` is the network. {_INPUTS}",
    "torch_export": f'`torch.export.load("model.pt2").module()` is the network. {_INPUTS}',
}
_LEARNED = """```python
from diffusers import DDPMPipeline

images = DDPMPipeline.from_pretrained("NAME")().images  # all steps; DDIMPipeline knows of no learned variance
```
"""
_AUTOENCODER = """```
ddpm-train representation=latents representation.autoencoder=NAME
```

or, in Python, `diffusers.AutoencoderKL.from_pretrained("NAME")`.
"""
_LABELLED = """The network takes class labels, which pipelines of DDPM do not give: call
`pipeline.unet(x, t, class_labels=labels)` and `pipeline.scheduler.step` in a loop, or export one class with `label=`.
"""
_GROUPS = ("model", "adapter", "schedule", "prediction", "variance", "weighting", "loss", "optimizer", "ema")


def card(cfg: Config, name: str, checkpoint: Path, config: Config, step: int, command: str, labelled: bool) -> str:
    """cfg: of ddpm-export. name: the folder's. config: the checkpoint's. labelled: whether what is written is told of
    classes."""
    library = ["library_name: diffusers"] if cfg["format"] == "diffusers" else []
    head = ["---", f"license: {cfg['license'] or 'unknown'}", *library, "tags:", "- diffusion", "- ddpm_cli", "---"]
    kind = cfg["format"]
    use = _USE[kind]
    if kind == "diffusers" and _name(config["model"]) == "AutoencoderKL":
        use = _AUTOENCODER
    elif kind == "diffusers" and labelled:
        use = _LABELLED
    elif kind == "diffusers" and _name(config["variance"]) == "LearnedRange":
        use = _LEARNED
    one = "" if cfg["label"] is None else f", of class {cfg['label']} alone"
    weights = "averaged" if cfg["weights"] == "ema" else "raw"
    rows = [("data", _data(config)), ("steps", f"{step:,}"), ("weights", weights)]
    rows += [(group, _told(config[group])) for group in _GROUPS if isinstance(config.get(group), dict)]
    training = config.get("training", {})
    rows += [(key, training[key]) for key in ("batch_size", "label_dropout") if key in training]
    parts = [
        "\n".join(head),
        f"# {name}\n\nA denoising diffusion model{one}, trained with ddpm_cli, in the format of {kind}.",
        f"## Use\n\n{use.replace('NAME', name)}".rstrip(),
        "## Recipe\n\n" + _table(("", ""), rows),
    ]
    if measured := _measured(checkpoint):
        parts.append("## Numbers\n\n" + _table(("metric", "value", "95 % interval"), measured))
    parts.append(f"## Made by\n\nddpm_cli {__version__}:\n\n```\n{command}\n```")
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _name(node: Config) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _told(node: Config) -> str:
    """A choice and its settings, without a table's numbers and without names of files, which are of one machine."""
    knobs = {k: v for k, v in node.items() if k not in ("_target_", "values", "path", "params") and v is not None}
    return ", ".join([_name(node) if "_target_" in node else "", *(f"{k}={v}" for k, v in knobs.items())]).lstrip(", ")


def _data(config: Config) -> str:
    """What kind of data, without the folder's name, which is of one machine."""
    node = config["dataset"]
    if "root" in node and node["root"] is None:
        return "not known"
    size = node.get("image_size")
    shape = f", {node['channels']} channel(s) of {size}x{size}" if isinstance(size, int) else ""
    return f"{_name(node)}{shape}"


def _measured(checkpoint: Path) -> list[tuple[str, str, str]]:
    """The metrics of the newest evaluation in the run's folder of this very file; none where nothing was measured."""
    run = run_of(checkpoint)
    files = [*run.glob("evaluation.json"), *run.glob("*/evaluation.json")] if run is not None else []
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if Path(content["source"]["checkpoint"]).resolve() != checkpoint.resolve():
                continue
            return [_metric(name, entry) for name, entry in content["metrics"].items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return []


def _metric(name: str, entry: Config) -> tuple[str, str, str]:
    ends = f"{entry['low']:.4g} to {entry['high']:.4g}" if entry.get("low") is not None else ""
    return str(entry.get("label", name)), f"{entry['value']:.4g}", ends
