"""What a resumed run takes from its checkpoint, and what from the command line."""

import pytest

from ddpm_cli.config.stored import check_stored
from ddpm_cli.errors import UserError
from ddpm_cli.run_dir import resume

STORED = {
    "seed": 1, "resume": None, "trust": ["old"], "run_dir": "a", "device": "cpu",
    "model": {"_target_": "ddpm_cli.models.unet.UNet", "channels": 8, "in_channels": 1},
    "dataset": {"_target_": "ddpm_cli.data.shapes.shapes", "root": "x", "image_size": 8, "channels": 1},
    "schedule": {"_target_": "ddpm_cli.diffusion.schedule.linear"},
    "prediction": {"_target_": "ddpm_cli.diffusion.prediction.V"},
    "variance": {"_target_": "ddpm_cli.diffusion.variance.FixedSmall"},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1.0},
    "training": {"stop_at": 9, "num_steps": 50},
}  # fmt: skip
NOW = {
    **STORED, "seed": 2, "resume": "a", "trust": [], "device": "auto",
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3.0},
    "training": {"stop_at": None, "num_steps": 60, "new_key": 5},
}  # fmt: skip


def test_only_what_is_typed_now_and_what_one_invocation_is_about_changes():
    merged = resume.merge(STORED, NOW, ["optimizer.lr=3", "resume=a"])
    assert merged["optimizer"]["lr"] == 3 and merged["seed"] == 1 and merged["device"] == "cpu"
    assert merged["resume"] == "a" and merged["trust"] == []
    assert merged["training"] == {"stop_at": None, "num_steps": 50, "new_key": 5}  # which the old version did not have
    assert STORED["training"] == {"stop_at": 9, "num_steps": 50}


@pytest.mark.parametrize(
    "typed,change",
    [
        ("model.channels=16", {"model": {**STORED["model"], "channels": 16}}),
        ("model=cnn", {"model": {"_target_": "ddpm_cli.models.cnn.CNN"}}),
        ("optimizer=sgd", {"optimizer": {"_target_": "torch.optim.SGD", "lr": 1.0}}),
        ("dataset.image_size=16", {"dataset": {**STORED["dataset"], "image_size": 16}}),
        ("experiment=other", {"schedule": {"_target_": "ddpm_cli.diffusion.schedule.cosine"}}),
    ],
)
def test_what_the_weights_depend_on_may_not_change(typed, change):
    with pytest.raises(UserError, match=r"cannot change on resume.*\nLeave"):
        resume.merge(STORED, {**NOW, **change}, [typed])


def test_what_was_typed_and_is_another_value_is_told():
    typed = ["optimizer.lr=3", "resume=a", "training={stop_at: 5, num_steps: 60}", "device=cpu", "trust=[]", "seed=2"]
    merged = resume.merge(STORED, {**NOW, "device": "cpu"}, typed)
    assert resume.changes(STORED, merged, typed) == ["optimizer.lr 1.0 -> 3.0", "training.num_steps 50 -> 60",
                                                      "training.new_key null -> 5", "seed 1 -> 2"]  # fmt: skip


def test_what_is_typed_again_and_where_the_data_lies_may_be_typed():
    moved = {**NOW, "dataset": {**STORED["dataset"], "root": "y"}}
    assert resume.merge(STORED, moved, ["model=unet", "dataset.root=y"])["dataset"]["root"] == "y"
    kept = {**moved, "model": {**moved["model"], "checkpointing": True}}
    assert resume.merge(STORED, kept, ["model.checkpointing=true"])["model"]["checkpointing"] is True
    assert "checkpointing" not in resume.merge(STORED, kept, ["model=unet"])["model"]


def test_a_stored_configuration_is_checked_like_a_command_line():
    check_stored(STORED, "a.pt")
    for wrong in (
        {},
        {**STORED, "model": 3},
        {**STORED, "training": {"num_steps": -1}},
        {**STORED, "model": {**STORED["model"], "channels": 10**12}},
        {**STORED, "seed": float("nan")},
    ):
        with pytest.raises(UserError, match=r"a\.pt: its"):
            check_stored(wrong, "a.pt")
