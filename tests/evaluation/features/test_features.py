"""The extractors: what they learn, what they make of images, what they refuse before anything is drawn."""

import inspect
import logging
from fnmatch import fnmatchcase

import pytest
import torch
import yaml
from torch import nn

from ddpm_cli.config.groups import config_dir, options_of
from ddpm_cli.config.knobs import TABLE
from ddpm_cli.config.targets import check_target, load_target
from ddpm_cli.data.digits import digits
from ddpm_cli.data.shapes import shapes
from ddpm_cli.data.store import Store
from ddpm_cli.errors import UserError, WorldError
from ddpm_cli.evaluation.features import base, classifier, inception
from ddpm_cli.evaluation.features.base import build_features
from ddpm_cli.system.files import sha256_of

CPU = torch.device("cpu")


def node_of(option, **changed):
    with open(f"{config_dir()}/features/{option}.yaml", encoding="utf-8") as file:
        return {**yaml.safe_load(file), **changed}


def build(folder, store, option, **changed):
    return build_features(node_of(option, **changed), store, CPU, [], folder)


def shapes_of(num_classes=4, image_size=16, channels=3, num_images=600):
    return shapes(
        num_images=num_images, seed=0, split="train", channels=channels, image_size=image_size, num_classes=num_classes
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def digits_store():
    return digits(split="train", channels=1, image_size=8, num_classes=10)


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints" / inception.FILE


@pytest.mark.parametrize("option", options_of("features"))
def test_every_knob_is_in_the_yaml_with_a_range_and_every_key_is_a_knob(option):
    node = node_of(option)
    target = node.pop("_target_")
    check_target("features", target)
    taken = inspect.signature(load_target("features", target)).parameters
    assert list(node) == [name for name in taken if name not in ("store", "device", "cache_dir")]
    numbers = [f"features.{key}" for key in node if not isinstance(node[key], bool)]
    assert [key for key in numbers if not any(fnmatchcase(key, pattern) for pattern in TABLE)] == []


def test_what_lies_beside_the_options_is_none():
    with pytest.raises(UserError, match="machinery"):
        load_target("features", "ddpm_cli.evaluation.features.base.sha256_of_arrays")


# The classifier


def test_the_classifier_tells_the_classes_apart_and_says_how_well(folder, digits_store):
    features = build(folder, digits_store, "classifier", num_steps=40)
    assert features.describe()["held_out_accuracy"] > 0.9
    assert (features.num_features, features.num_classes, features.resize) == (64, 10, "none")
    test = digits(split="test", channels=1, image_size=8, num_classes=10)
    found = features(test.items)
    assert found.features.shape == (299, 64) and found.probabilities.sum(1).allclose(torch.ones(299))
    assert (found.probabilities.argmax(1) == test.labels).float().mean() > 0.9


def test_the_classifier_is_trained_once_and_anew_where_its_file_is_damaged(folder, digits_store, monkeypatch, caplog):
    first = build(folder, digits_store, "classifier", num_steps=40)
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "_trained", None)
        assert build(folder, digits_store, "classifier", num_steps=40).sha256 == first.sha256
    (file,) = folder.glob("classifier-digits-train-*.npz")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "ddpm_cli"):
        again = build(folder, digits_store, "classifier", num_steps=40)
    assert "damaged" in caplog.text and again.sha256 == first.sha256  # the same weights, bit for bit


def test_a_set_without_classes_is_told_apart_by_how_its_images_are_turned(folder):
    features = build(folder, shapes_of(num_classes=0, image_size=12), "classifier", num_steps=60)
    told = features.describe()
    assert (
        told["task"] == "turns by right angles" and told["held_out_accuracy"] > 0.4
    )  # most shapes look alike, by chance 0.25
    assert features.num_classes is None and features(shapes_of().items[:5]).probabilities is None


def test_large_images_are_scaled_and_it_is_recorded(folder):
    features = build(folder, shapes_of(image_size=72, num_images=20), "classifier", num_steps=1)
    assert features.resize == "bilinear, antialiased, to 64"
    assert features(shapes_of(image_size=72, num_images=3).items).features.shape == (3, 64)


def test_features_do_not_depend_on_the_batch(folder, digits_store):
    features, images = build(folder, digits_store, "classifier", num_steps=40), digits_store.items[:150]
    whole = features(images)
    for size in (1, 7, 100):
        parts = [features(some) for some in images.split(size)]
        assert torch.equal(whole.features, torch.cat([part.features for part in parts]))
        assert torch.equal(whole.probabilities, torch.cat([part.probabilities for part in parts]))


def test_what_is_no_image_has_no_features(folder):
    sound = Store(torch.zeros(4, 1, 100), None, (), "sound", "0")
    with pytest.raises(UserError, match="sound holds"):
        build(folder, sound, "classifier")


def test_a_folder_that_cannot_be_written_costs_the_time_alone(tmp_path, digits_store, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "ddpm_cli"):
        build(tmp_path / "file", digits_store, "classifier", num_steps=1)
    assert "not kept" in caplog.text


# Inception


def test_auto_is_the_classifier_where_there_are_no_weights(folder, digits_store, no_weights):
    assert build(folder, digits_store, "auto", num_steps=40).name == "classifier"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"weights": "none.pth"}, r"features\.weights=none\.pth: no such file; .*features=classifier"),
        (
            {"download": False},
            r"is not there; put weights-inception-2015-12-05-6726825d\.pth there.*features=classifier",
        ),
    ],
)
def test_missing_weights_are_told_in_a_line_with_the_remedy(folder, digits_store, no_weights, changed, told):
    with pytest.raises(UserError, match=told) as caught:
        build(folder, digits_store, "inception", **changed)
    assert len(str(caught.value).splitlines()) == 1


def test_a_download_that_fails_is_told_in_a_line_and_leaves_nothing(folder, digits_store, no_weights, monkeypatch):
    served = no_weights.parents[3] / "served.pth"
    served.write_bytes(b"another file")
    for url, told in ((served.as_uri(), "invalid hash value"), ("file:///none", "No such file")):
        monkeypatch.setattr(inception, "_URL", url)
        with pytest.raises(
            WorldError, match=rf"{told}.*features\.weights=PATH, or choose features=classifier"
        ) as caught:
            build(folder, digits_store, "inception")
        assert len(str(caught.value).splitlines()) == 1
        assert not [path for path in no_weights.parent.iterdir() if path.name != ".download.lock"]


def test_a_file_that_holds_something_else_is_refused(folder, digits_store, tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not hold FID's Inception"):
        build(folder, digits_store, "inception", weights=str(tmp_path / "x.pth"))


def test_images_are_resized_as_tensorflow_1_did():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    found = inception.resized(x, 6)[0, 0]
    assert found[0].tolist() == pytest.approx([0, 2 / 3, 4 / 3, 2, 8 / 3, 3])  # from 0, 2/3, ..., the last one held
    assert found[:, 0].tolist() == [0, 2, 4, 6, 8, 8]


@pytest.mark.slow
def test_inception_is_torch_fidelitys(folder, tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path / "weights.pth"
    state, draw = inception._network().state_dict(), torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=draw)
        elif "running" in name:
            tensor.uniform_(0.5, 1.5, generator=draw)
    torch.save(state, path)
    monkeypatch.setattr(base, "_IMAGES_AT_ONCE", 2)
    features = build(folder, shapes_of(), "inception", weights=str(path))
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    images = shapes_of(image_size=32, num_images=2).items
    found, (pool, logits) = features(images), theirs(images)
    torch.testing.assert_close(found.features, pool, rtol=1e-4, atol=1e-4 * float(pool.abs().max()))
    torch.testing.assert_close(found.probabilities, logits.softmax(1), rtol=1e-3, atol=1e-5)
    assert features.sha256 == sha256_of(path)
    grey = features(images[:, :1])
    assert torch.equal(grey.features, features(images[:, :1].repeat(1, 3, 1, 1)).features)


# TorchScript


class Mean(nn.Module):
    """The mean of each channel, of numbers as they come."""

    def forward(self, x):
        return x.float().mean((2, 3))


class Published(nn.Module):
    """As NVIDIA's: features when asked for, else something else."""

    def forward(self, x, return_features: bool = False):
        return x.float().mean((2, 3)) if return_features else x.float()


class Square(nn.Module):
    def forward(self, x):
        assert x.shape[2] == 32, "only 32 pixels"
        return x.float().mean((1, 2, 3))


def scripted(tmp_path, module):
    torch.jit.script(module).save(str(tmp_path / "net.pt"))
    return str(tmp_path / "net.pt")


@pytest.mark.parametrize("module", [Mean(), Published()], ids=["plain", "published"])
def test_a_torchscript_file_gets_the_range_size_and_channels_it_asks_for(folder, tmp_path, module):
    path, store = scripted(tmp_path, module), shapes_of(channels=1)
    white = torch.full((2, 1, 16, 16), 255, dtype=torch.uint8)
    for kind, value in (("uint8", 255), ("unit", 1), ("signed", 1)):
        features = build(folder, store, "torchscript", path=path, input=kind, image_size=20)
        assert features(white).features.tolist() == [[value] * 3] * 2
        assert features(0 * white).features.tolist() == [[-1 if kind == "signed" else 0] * 3] * 2
    assert features.resize == "bilinear, antialiased, to 20" and features.describe()["range"] == "-1..1"
    assert features.sha256 == sha256_of(path)


def test_a_torchscript_file_that_cannot_serve_is_refused(folder, tmp_path):
    store = shapes_of()
    (tmp_path / "text.pt").touch()
    with pytest.raises(UserError, match=r"features\.path=.* is no TorchScript file"):
        build(folder, store, "torchscript", path=str(tmp_path / "text.pt"))
    with pytest.raises(UserError, match=r"is no TorchScript file"):
        build(folder, store, "torchscript", path=str(tmp_path / "none.pt"))
    path = scripted(tmp_path, Square())
    with pytest.raises(UserError, match=r"does not take images of this form .*\n.*features\.image_size"):
        build(folder, store, "torchscript", path=path)
    with pytest.raises(UserError, match=r"\(B, D\); of 3 images it gives torch\.float32 \(3,\)"):
        build(folder, store, "torchscript", path=path, image_size=32)
