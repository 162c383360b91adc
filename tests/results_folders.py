"""Folders of runs without the runs."""

import json


def folder_of(path, overrides=(), *, choices=None, config=None, log=(), **result):
    """A run's folder without the run."""
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra/overrides.yaml").write_text(json.dumps(list(overrides)), encoding="utf-8")
    hydra = {"hydra": {"runtime": {"choices": {**(choices or {}), "hydra/launcher": "basic"}}}}
    (path / ".hydra/hydra.yaml").write_text(json.dumps(hydra), encoding="utf-8")
    (path / "config.yaml").write_text(json.dumps(config or {}), encoding="utf-8")
    if log:
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    if result:
        (path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return path
