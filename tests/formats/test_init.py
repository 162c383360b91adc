"""A run that starts from weights takes over what they are of, unless it is typed."""

import pytest
import yaml
from commands import TINY, run

GROUPS = ("model", "schedule", "prediction", "variance")
# None of what the weights are of.
DATA = [text for text in TINY if not text.startswith(("model.", "schedule."))]
OTHER = ("prediction=epsilon", "schedule=linear", "variance=fixed_large", "model.head_channels=8")


def begun(tmp_path, *overrides):
    run("train", *DATA, *overrides, "training.num_steps=1", "run_dir=new", cwd=tmp_path)
    return yaml.safe_load((tmp_path / "new/config.yaml").read_text())


@pytest.fixture
def source(trained):
    folder = trained(*TINY, *OTHER)
    return folder, yaml.safe_load((folder / "config.yaml").read_text())


def test_what_is_not_typed_comes_with_the_weights(source, tmp_path):
    folder, cfg = source
    new = begun(tmp_path, f"init={folder}")
    assert {group: new[group] for group in GROUPS} == {group: cfg[group] for group in GROUPS}


def test_what_is_typed_stays(source, tmp_path):
    folder, cfg = source
    new = begun(tmp_path, f"init={folder}", "prediction=v", "model.dropout=0.2", "schedule.num_timesteps=40")
    assert new["prediction"]["_target_"].endswith(".V")
    assert new["model"] == {**cfg["model"], "dropout": 0.2}
    assert new["schedule"] == {**cfg["schedule"], "num_timesteps": 40} and new["variance"] == cfg["variance"]


def test_a_budget_takes_the_network_of_the_weights(source, tmp_path):
    folder, _ = source
    done = run("train", *DATA, f"init={folder}", "budget=30m", "dry_run=true", cwd=tmp_path)
    plain = run("train", *TINY, *OTHER, "dry_run=true", cwd=tmp_path)
    parameters = [line for line in plain.stdout.splitlines() if line.startswith("parameters")]
    assert parameters[0] in done.stdout.splitlines()


def test_an_experiment_that_tunes_any_network_takes_that_of_the_weights(trained, tmp_path):
    folder = trained(*TINY, "prediction=x0", *OTHER[1:])
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    new = begun(tmp_path, f"init={folder}", "experiment=consistency")
    assert {group: new[group] for group in GROUPS} == {group: cfg[group] for group in GROUPS}
    assert new["loss"]["_target_"].endswith(".Consistency")


def test_an_experiment_is_typed(source, tmp_path):
    folder, _ = source
    line = (f"init={folder}", "experiment=digits_quick", "run_dir=other")
    done = run("train", *line, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "does not fit this network" in done.stderr
