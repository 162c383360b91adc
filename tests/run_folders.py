"""Folders as runs, evaluations and drawings leave them, without the work."""

import json

from PIL import Image

CONFIG = {"seed": 0, "optimizer": {"lr": 0.001}, "training": {"num_steps": 100}}


def run_folder(path, overrides=(), *, choices=None, config=CONFIG, log=(), steps=(), **result):
    record = path / ".hydra"
    record.mkdir(parents=True)
    chosen = {"hydra": {"runtime": {"choices": {"prediction": "v", "dataset": "digits", **(choices or {})}}}}
    files = {record / "overrides.yaml": list(overrides), record / "hydra.yaml": chosen, path / "config.yaml": config}
    if result:
        files[path / "result.json"] = {"overrides": list(overrides), "metrics": {}, **result}
    for file, content in files.items():
        file.write_text(json.dumps(content), encoding="utf-8")
    if log:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    for step in steps:
        (path / "samples").mkdir(exist_ok=True)
        Image.new("L", (64, 48), 40 + step % 200).save(path / f"samples/step_{step:08d}.png")
    return path


def sweep_folder(path):
    """2x2 jobs: the first three done, the last failed."""
    path.mkdir(parents=True)
    task = ["prediction=v,epsilon", "optimizer.lr=0.001,0.002"]
    record = {"hydra": {"job": {"name": "train"}, "overrides": {"task": task, "hydra": ["hydra.mode=MULTIRUN"]}}}
    (path / "multirun.yaml").write_text(json.dumps(record), encoding="utf-8")
    jobs = [(prediction, lr) for prediction in ("v", "epsilon") for lr in (0.001, 0.002)]
    for job, (prediction, lr) in enumerate(jobs):
        log = [{"step": step, "loss": 1 / step + job / 10, "lr": lr} for step in range(1, 101)]
        for split in ("train", "heldout"):
            levels = {f"v_error_{split}_at_{level:+d}": 1 / (level + 8 + job) for level in (-7, -1, 7)}
            log += [{"step": 100, f"v_error_{split}": 0.3 + job / 10, **levels}]
        log += [{"step": 100, "eval/fid": 9.0 + job, "eval/fid_low": 8.0 + job, "eval/fid_high": 10.0 + job}]
        failed = job == 3
        metrics = {"loss": 0.01 + job / 10, "fid": 9.0 + job, "fid_low": 8.0 + job, "fid_high": 10.0 + job}
        end = {"status": "done", "metrics": metrics}
        if failed:
            end = {"status": "failed", "error": "WorldError: the loss was not finite"}
        run_folder(
            path / str(job), [f"prediction={prediction}", f"optimizer.lr={lr}"], choices={"prediction": prediction},
            config={**CONFIG, "optimizer": {"lr": lr}}, log=[] if failed else log,
            steps=[] if failed else range(20, 101, 20), seconds=75.0, step=2 if failed else 100,
            environment={"device": "cpu", "torch": "2.10"}, **end,
        )  # fmt: skip
    return path


def evaluation_folder(path, sampler, num_steps, fid, **changes):
    width = fid / 20
    entry = {"value": fid, "low": fid - width, "high": fid + width, "confidence": 0.95, "n": 5000, "label": "FID@5000"}
    more = {"label": "recall", "floor": 0.99, "better": "higher"}
    evaluation = {
        "schema": 1,
        "source": {"checkpoint": "/runs/a/checkpoints/step_00000100.pt", "sha256": "ab" * 32, "step": 100},
        "num_images": 5000, "seed": 0, "sampler": {"name": sampler, "num_steps": num_steps},
        "network_evaluations": 2 * num_steps - 1 if sampler == "heun" else num_steps,
        "reference": {"dataset": "digits", "split": "train", "num_images": 1498, "fingerprint": "cd" * 32},
        "features": {"name": "classifier", "sha256": "ef" * 32, "resize": "none"},
        "metrics": {
            "fid": {**entry, "floor": 1.5, "extrapolated": fid - 1, "better": "lower"},
            "recall": {"value": 1 - fid / 100, "low": 0.9 - fid / 100, "high": 1.05 - fid / 100, **more},
        },
        "versions": {"torch": "2.10", "ddpm_cli": "0.1.0"}, "device": "cpu", "precision": "fp32", **changes,
    }  # fmt: skip
    metrics = {"fid": fid, "fid_low": fid - width, "fid_high": fid + width}
    run_folder(
        path, ["ckpt=latest", f"sampler={sampler}", f"sampler.num_steps={num_steps}"], choices={"sampler": sampler},
        config={"seed": 0}, status="done", metrics=metrics, seconds=9.5,
    )  # fmt: skip
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return path
