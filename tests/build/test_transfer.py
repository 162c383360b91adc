"""Weights of a trained network in one for other classes and channels: what is kept, and that the image is."""

import pytest
import torch

from ddpm_cli.build.load import load_weights
from ddpm_cli.build.trainer import freeze
from ddpm_cli.build.transfer import transferred
from ddpm_cli.errors import UserError
from ddpm_cli.models.unet import UNet

T = torch.tensor([3.0, 700.0])


def unet(channels=1, classes=4, outputs=1, patch_size=1, seed=0, attention_levels=()):
    torch.manual_seed(seed)
    network = UNet(
        in_channels=channels,
        out_channels=channels * outputs,
        num_classes=classes,
        class_conditional=classes is not None,
        channels=8,
        channel_mult=[1, 2],
        blocks_per_level=1,
        attention_levels=attention_levels,
        dropout=0.0,
        patch_size=patch_size,
    )
    with torch.no_grad():
        for p in network.parameters():  # none of them zero, as some begin
            p.add_(0.05 * torch.randn(p.shape))
    return network.eval()


def fitted(new, old, **names):
    load_weights(new, transferred(new, old.state_dict(), "old.pt", **names), "old.pt")
    return new


def test_the_same_network_is_taken_as_it_is(caplog):
    caplog.set_level("INFO", logger="ddpm_cli")
    old, new = unet(), unet(seed=1)
    fitted(new, old)
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))
    assert len(caplog.records) == 1 and "tensors are taken as they are" in caplog.text


def test_classes_keep_their_rows_by_name_and_new_ones_begin_as_the_null_label(caplog):
    caplog.set_level("INFO", logger="ddpm_cli")
    old, new = unet(classes=4), unet(classes=3, seed=1)
    fitted(new, old, old_names=["a", "b", "c", "d"], names=["c", "new", "a"])
    before, rows = old.class_embedding.weight, new.class_embedding.weight
    assert torch.equal(rows, before[[2, 4, 0, 4]])
    assert "4 classes to 3: 2 keep their row, the others begin as the null label" in caplog.text
    x = torch.randn(2, 1, 8, 8)
    now = new(x, T, {"labels": torch.tensor([0, 2])})
    torch.testing.assert_close(now, old(x, T, {"labels": torch.tensor([2, 0])}))


def test_without_names_as_many_classes_keep_their_places_and_others_begin_anew():
    old, new = unet(classes=4), unet(classes=4, seed=1)
    assert torch.equal(fitted(new, old).class_embedding.weight, old.class_embedding.weight)
    fewer = fitted(unet(classes=2, seed=1), old).class_embedding.weight
    assert torch.equal(fewer, old.class_embedding.weight[[4, 4, 4]])


def test_classes_come_and_go(caplog):
    caplog.set_level("INFO", logger="ddpm_cli")
    fitted(unet(classes=None, seed=1), unet(classes=4))
    assert "class_embedding.weight: left out" in caplog.text
    fitted(unet(classes=3, seed=1), unet(classes=None))
    assert "class_embedding.weight: fresh" in caplog.text


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_grey_image_in_colour_gives_what_the_grey_one_gave(patch_size, outputs):
    old = unet(1, outputs=outputs, patch_size=patch_size)
    new = fitted(unet(3, outputs=outputs, patch_size=patch_size, seed=1), old)
    x = torch.randn(2, 1, 8, 8)
    grey, colour = old(x, T), new(x.expand(2, 3, 8, 8), T)
    for mine, theirs in zip(colour.chunk(outputs, 1), grey.chunk(outputs, 1), strict=True):
        torch.testing.assert_close(mine, theirs.expand(2, 3, 8, 8), rtol=1e-4, atol=1e-5)
    back = fitted(unet(1, outputs=outputs, patch_size=patch_size, seed=2), new)
    torch.testing.assert_close(back(x, T), grey, rtol=1e-4, atol=1e-5)


def test_a_network_that_differs_otherwise_is_refused_and_left_as_it_was(caplog):
    caplog.set_level("INFO", logger="ddpm_cli")
    new = unet(seed=1, attention_levels=[0])
    before = {name: p.clone() for name, p in new.state_dict().items()}
    with pytest.raises(UserError, match=r"old.pt does not fit this network: .*attentions"):
        fitted(new, unet())
    shared = len(unet().state_dict())
    assert f"{shared} of {len(before)} tensors are taken" in caplog.text and shared < len(before)
    assert all(torch.equal(p, before[name]) for name, p in new.state_dict().items())


def test_frozen_modules_are_named_or_refused():
    network = unet()
    freeze(network, ["down_blocks", "conv_in.bias"])
    still = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert still == {n for n, _ in network.named_parameters() if n.startswith("down_blocks.")} | {"conv_in.bias"}
    with pytest.raises(UserError, match="training.freeze: the network has no down_block; it has .*down_blocks"):
        freeze(network, ["down_block"])
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(network, [name for name, _ in network.named_parameters()])
