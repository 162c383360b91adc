"""The README's lines on other programs do what they say."""

import re
import shlex
from pathlib import Path

import pytest
from commands import run
from projection import Projection

README = Path(__file__).parents[2] / "README.md"
SECTION = re.search(r"### To and from other programs\n(.*?)\n### ", README.read_text(encoding="utf-8"), re.DOTALL)[1]
LINES = [line for line in re.search(r"```\n(.*?)```", SECTION, re.DOTALL)[1].splitlines() if line.startswith("ddpm-")]
QUICK = {  # and few images and steps
    "sample": ["num_images=2", "sampler.num_steps=2"],
    "eval": ["num_images=20", "sampler.num_steps=2", "metrics=[fid]"],
    "train": ["training.num_steps=1", "training.batch_size=4", "training.num_samples=2", "sampler.num_steps=2"],
    "export": [],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of digits below outputs/."""
    folder = tmp_path_factory.mktemp("readme")
    run("train", *QUICK["train"], "training.heldout_every=0", cwd=folder)
    return folder


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.partition("#")[0].strip())
def test_a_line_of_the_readme_runs(line, place, monkeypatch):
    if "format=onnx" in line:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setattr("ddpm_cli.evaluation.evaluator.build_features", lambda *_: Projection())
    command, *words = shlex.split(line, comments=True)
    name = command.removeprefix("ddpm-")
    done = run(name, *words, *QUICK[name], cwd=place)
    assert Path(done.stdout.splitlines()[-1]).is_dir()
    comment = line.partition("#")[2]
    if "from_pretrained" in comment:
        diffusers = pytest.importorskip("diffusers")
        (folder,) = re.findall(r'DDIMPipeline.from_pretrained\("(\w+)"\)', comment)
        pipeline = diffusers.DDIMPipeline.from_pretrained(place / folder)
        assert pipeline(num_inference_steps=2).images[0].size == (8, 8)


def test_the_readme_names_every_format():
    from ddpm_cli.build.export import FORMATS

    assert [name for name in FORMATS if f"`format={name}`" not in SECTION] == []
