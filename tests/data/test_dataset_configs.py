"""The YAML of a data set and the signature of its function are one schema."""

import importlib
import inspect

import pytest

from ddpm_cli.build.instantiate import make
from ddpm_cli.config.compose import Composer, plain
from ddpm_cli.config.groups import options_of
from ddpm_cli.config.knobs import rule_for
from ddpm_cli.errors import UserError


def node_of(name):
    with Composer.opened("train") as composer:
        return plain(composer.compose([f"dataset={name}"]))["dataset"]


@pytest.mark.parametrize("name", options_of("dataset"))
def test_every_knob_is_in_the_yaml_and_every_key_is_a_knob(name):
    node = node_of(name)
    module, _, name = node.pop("_target_").rpartition(".")
    parameters = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    if "sample_rate" in node:
        assert parameters.pop() == "representation"  # a group of its own; and sounds are not mirrored
    else:
        assert isinstance(node.pop("flip"), bool)
    assert list(node) == parameters


@pytest.mark.parametrize("name", options_of("dataset"))
def test_a_key_that_a_set_does_not_take_is_the_users_mistake(name):
    node = node_of(name)
    with pytest.raises(UserError, match=r"does not take these keys: .*'colours'"):
        make("dataset", {**node, "colours": 3}, [], **({"representation": None} if "sample_rate" in node else {}))


# What the sets leave to the table of knobs, each with what would otherwise give a set nobody asked for.
BAD_VALUES = [
    *(("image_size", value) for value in (0, -8, 8.5, "8", True, 8193, 10**9)),
    *(("split", value) for value in ("valid", "", 3, None)),
    *(("num_images", value) for value in (0, 1.5, 2**40)),
    *(("num_classes", value) for value in (-1, "10", True)),
    *(("channels", value) for value in (0, "3", True)),
    *(("seed", value) for value in ("x", -1, 2**63)),
    *(("download", value) for value in ("maybe", 1)),
    *(("on_error", value) for value in ("ignore", True)),
    *((key, value) for key in ("root", "cache") for value in ("", 3, "a\0b")),
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_values_that_no_set_can_take_are_refused_by_the_table(key, value):
    nodes = [node_of(name) for name in options_of("dataset")]
    for default in [node[key] for node in nodes if key in node]:
        with pytest.raises(ValueError):
            rule_for(f"dataset.{key}", default)(value)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_the_embedded_sets_load_with_their_defaults(name):
    node = node_of(name)
    module, _, function = node.pop("_target_").rpartition(".")
    node.pop("flip")
    store = getattr(importlib.import_module(module), function)(**node)
    assert store.item_shape == (node["channels"], node["image_size"], node["image_size"])
    assert store.num_classes == node["num_classes"]
