"""A run's folder: whose it is, what is kept in it, and what its journal shows after a crash."""

import errno
import os

import pytest

from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.run_dir import checkpoint
from ddpm_cli.run_dir.folder import RunDir
from ddpm_cli.training.journal import Journal

CONTENT = {"config": {}, "network": {}, "emas": {}}
FIGURES = {"loss": 1.0, "images_per_second": 2.0}


def test_a_folder_in_use_is_refused_until_it_is_let_go(tmp_path):
    run = RunDir.create(tmp_path / "run")
    for claim in (RunDir.create, RunDir.open):
        with pytest.raises(UserError, match="in use by another run"):
            claim(tmp_path / "run")
    run.close()
    RunDir.create(tmp_path / "run").close()  # it made no checkpoint yet
    run = RunDir.open(tmp_path / "run")
    run.save_checkpoint(1, {**CONTENT, "step": 1}, 3)
    run.close()
    with pytest.raises(UserError, match="already holds a run"):
        RunDir.create(tmp_path / "run")


def test_a_run_that_has_not_begun_withdraws_without_a_trace_and_one_that_has_stays(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.write_config("seed: 0")
    (run.path / "result.json").write_text("{}")
    run.withdraw()
    run.close()
    assert not list(tmp_path.iterdir())
    run = RunDir.create(tmp_path / "run")
    run.save_checkpoint(1, {**CONTENT, "step": 1}, 3)
    before = sorted((tmp_path / "run").rglob("*"))
    run.withdraw()
    assert sorted((tmp_path / "run").rglob("*")) == before
    run.close()


def test_going_back_sets_aside_what_was_ahead_and_what_is_damaged(tmp_path):
    run = RunDir.create(tmp_path)
    for step in (2, 4, 6):
        run.save_checkpoint(step, {**CONTENT, "step": step}, 3, best=step == 4)
    (run.checkpoints / "step_00000004.pt").unlink()
    (run.checkpoints / "step_00000004.pt").write_bytes(b"x")
    run.set_aside(2, [run.checkpoints / "step_00000004.pt"])
    names = {p.name for p in run.checkpoints.iterdir()}
    assert names == {"step_00000002.pt", "step_00000004.pt.bad", "step_00000006.pt.ahead", "best.pt"}
    assert checkpoint.load(run.checkpoints / "best.pt")["step"] == 4
    run.close()


def test_best_is_copied_where_a_file_can_have_but_one_name(tmp_path, monkeypatch):
    def link(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run = RunDir.create(tmp_path)
    run.save_checkpoint(2, {**CONTENT, "step": 2}, 1, best=True)
    assert checkpoint.load(run.checkpoints / "best.pt")["step"] == 2
    run.close()


def test_the_journal_shows_each_step_once_after_crashes(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, end in ((0, 5), (0, 7), (4, 9)):  # killed before a checkpoint, killed at 7, gone on with from 4
        with Journal(tmp_path, start, 9) as journal:
            for step in range(start + 1, end + 1):
                journal.metrics(step, dict(FIGURES))
        with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step": 9, "lo')
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("curves/loss")] == list(range(1, 10))
    with Journal(tmp_path, 9, 9) as journal:
        journal.rewind(6)
    assert [line.split(",")[0] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        f'{{"step": {step}' for step in range(1, 7)
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_journal_that_cannot_be_written_ends_the_run_with_its_path(tmp_path):
    with Journal(tmp_path, 0, 9) as journal:
        journal._metrics.close()
        journal._metrics = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
        with pytest.raises(WorldError, match=r"metrics\.jsonl: No space left"):
            journal.metrics(1, dict(FIGURES))


def test_what_a_kill_left_half_written_is_cleared_wherever_it_lies(tmp_path):
    run = RunDir.create(tmp_path / "run", {"overrides.yaml": "[]"})
    run.write_config("seed: 0")
    run.close()
    for name in (".config.yaml.7.tmp", "checkpoints/.step_00000001.pt.7.tmp", ".hydra/.hydra.yaml.7.tmp"):
        (tmp_path / "run" / name).touch()
    (tmp_path / "run/.git").mkdir()
    (tmp_path / "run/.git/.mine.tmp").touch()  # somebody else's
    RunDir.open(tmp_path / "run").close()
    assert [path.name for path in (tmp_path / "run").rglob("*.tmp")] == [".mine.tmp"]
