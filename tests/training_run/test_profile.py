"""profile=true: a trace that Perfetto opens, and a run of the same bits; TFLOP/s in every run's metrics."""

import gzip
import json

import pytest
import torch
from commands import TINY, run, tensors

from ddpm_cli.system.peak import peak_tflops
from ddpm_cli.training.journal import Journal, Work


def weights(folder):
    return tensors(torch.load(folder / "checkpoints/step_00000020.pt", weights_only=True))


def test_a_profiled_run_is_the_same_run_and_leaves_a_trace(tmp_path):
    short = [*TINY, "training.num_steps=20", "training.sample_every=0"]
    run("train", *short, "run_dir=plain", cwd=tmp_path)
    done = run("train", *short, "profile=true", "run_dir=profiled", cwd=tmp_path)
    path = tmp_path / "profiled/profile/trace.json.gz"
    assert f"profile of 5 steps: {path} (open it in ui.perfetto.dev)" in done.stderr
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [event for event in events if event.get("name", "").startswith("ProfilerStep#") and event["ph"] == "X"]
    assert [event["name"] for event in steps] == [f"ProfilerStep#{number}" for number in range(12, 17)]
    assert all(event["dur"] > 0 and event["ts"] > 0 for event in steps)
    assert any("convolution_backward" in event.get("name", "") for event in events)
    assert "aten::convolution_backward" in (path.parent / "operators.txt").read_text()
    plain, profiled = weights(tmp_path / "plain"), weights(tmp_path / "profiled")
    assert len(plain) > 100 and all(torch.equal(plain[name], profiled[name]) for name in plain)


def test_a_run_too_short_to_be_profiled_says_so(tmp_path):
    done = run("train", *TINY, "training.num_steps=8", "profile=true", "run_dir=short", cwd=tmp_path)
    assert "profile=true: nothing was recorded in fewer than 13 steps" in done.stderr
    assert not (tmp_path / "short/profile").exists()


def test_what_a_device_does_is_told_beside_its_images(tmp_path):
    with Journal(tmp_path, 0, 10, Work(tflop_per_image=0.04, peak_tflops=800.0)) as journal:
        journal.metrics(10, {"loss": 1.0, "images_per_second": 5000.0})
    told = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert told["tflops"] == pytest.approx(200.0) and told["mfu"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "name,precision,peak",
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156.0),
        ("NVIDIA A10G", "fp16", 70.0),
        ("NVIDIA L4", "fp32", 30.3),
        ("NVIDIA L40S", "bf16", 362.1),
        ("NVIDIA GeForce RTX 2060", "fp16", None),
    ],
)
def test_peaks_are_those_of_the_device_named(name, precision, peak):
    assert peak_tflops(name, precision) == peak
