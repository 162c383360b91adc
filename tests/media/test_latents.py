"""Latents of images: scaled, decoded, masked; and sets of them, prepared once."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_cli.data.prepare.latents import encoded
from ddpm_cli.data.shapes import shapes
from ddpm_cli.errors import UserError
from ddpm_cli.media.images import Images
from ddpm_cli.media.latents import LatentImages, Latents


class Halves(nn.Module):
    """Left and right half of every row apart, exactly: (B, 1, H, W) <-> (B, 4, H / 2, W / 2)."""

    gain = 3.0

    def encode(self, x):
        return self.gain * nn.functional.pixel_unshuffle(x, 2)

    def decode(self, z):
        return nn.functional.pixel_shuffle(z / self.gain, 2)


def latents(scale=1.0, network=Halves):
    return Latents(scale, 4, 2, "0" * 64, network)


def medium(**knobs):
    return LatentImages(Images((1, 8, 8)), latents(**knobs))


def load(tmp_path, made, *, sha="a", mirrored=False, dtype="float16"):
    store = shapes(num_images=300, seed=0, split="train", channels=1, image_size=8, num_classes=4)
    told = {"sha256": sha}
    device = torch.device("cpu")
    return store, encoded(store, made, tmp_path, autoencoder=told, dtype=dtype, mirrored=mirrored, device=device)


@pytest.mark.parametrize("scale", [0.5, [0.5, 1.0, 2.0, 4.0]])
def test_latents_are_scaled_on_the_way_in_and_back(scale):
    items = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    made = medium(scale=scale)
    x = made.to_model(items)
    assert x.shape == (5, *made.item_shape) and torch.equal(made.to_file(x), items)
    plain = medium().to_model(items)
    torch.testing.assert_close(x, plain * torch.tensor(scale).view(-1, 1, 1))


def test_latents_of_many_images_are_those_of_each():
    items = torch.rand(3, 1, 512, 512)  # more than are encoded at once
    torch.testing.assert_close(latents().encode(items), torch.cat([latents().encode(some[None]) for some in items]))


def test_a_mask_covers_every_latent_that_knows_of_its_pixels_and_is_shown_so():
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 3, 4] = True
    covered = latents().span(mask)
    assert covered.sum() == 1 and covered[0, 0, 1, 2]
    shown = medium().without(torch.zeros(1, 8, 8, dtype=torch.uint8), covered[0])
    assert (shown == 128).sum() == 4 and (shown[0, 2:4, 4:6] == 128).all()


def test_a_set_of_latents_is_kept_by_data_autoencoder_and_kind(tmp_path):
    made = medium()
    store, one = load(tmp_path, made)
    assert one.items.dtype == torch.float16 and one.class_names == store.class_names and len(one) == 300
    assert torch.equal(one.labels, store.labels) and torch.equal(one.to_file(one.items[:9]), store.items[:9])
    again = load(tmp_path, LatentImages(made.images, latents(network=partial(pytest.fail, "encoded twice"))))[1]
    assert again.fingerprint == one.fingerprint and torch.equal(again.items, one.items)
    others = [load(tmp_path, made, **knobs)[1] for knobs in ({"sha": "b"}, {"dtype": "float32"}, {"mirrored": True})]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_mirror_images_are_encoded_behind_the_images(tmp_path):
    store, made = load(tmp_path, medium(), mirrored=True)
    assert len(made) == 600 and torch.equal(made.labels, torch.cat([store.labels] * 2))
    assert torch.equal(made.to_file(made.items[300:]), store.items.flip(-1))
    assert not torch.equal(made.items[300:], made.items[:300].flip(-1))  # mirrored latents are others


def test_latents_beyond_the_kind_of_number_are_refused(tmp_path):
    class Large(Halves):
        gain = 1e6

    with pytest.raises(UserError, match="choose representation.dtype=float32"):
        load(tmp_path, medium(network=Large))
    assert np.isfinite(load(tmp_path, medium(network=Large), dtype="float32")[1].items.numpy()).all()
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]
