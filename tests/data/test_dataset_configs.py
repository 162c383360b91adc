"""The YAML of a data set and the signature of its function are one schema."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from ddpm_cli.data.torchvision_sets import Settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs/dataset").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_knob_is_in_the_yaml_and_every_key_is_a_knob(path):
    node = yaml.safe_load(path.read_text())["dataset"]
    module, _, name = node.pop("_target_").rpartition(".")
    assert isinstance(node.pop("flip"), bool)
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    knobs = Settings.__annotations__ if list(parameters) == ["settings"] else parameters
    assert list(node) == list(knobs)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_the_embedded_sets_load_with_their_defaults(name):
    node = yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text())["dataset"]
    module, _, function = node.pop("_target_").rpartition(".")
    node.pop("flip")
    store = getattr(importlib.import_module(module), function)(**node)
    assert store.item_shape == (node["channels"], node["image_size"], node["image_size"])
    assert store.num_classes == node["num_classes"]
