"""Hydra and OmegaConf read, parse and compose each text once in a session, and hand out copies after that.

A command composes its configuration five times out of two dozen YAML files, a quarter of a second each: over the
hundreds of command lines of these tests that is half of their time. What is remembered are results of these libraries
alone, never of this package, and of the package's own files alone: a test's folders may change at any time. Processes
that tests start do without.
"""

import copy
import functools
import os
from pathlib import Path

import omegaconf._utils
import omegaconf.base
import omegaconf.grammar_parser
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime

CONFIGS = str(Path(__file__).resolve().parent.parent / "configs")
UNCHANGING = {("pkg", "hydra.conf"), ("structured", ""), ("file", CONFIGS)}


def once(function, key):
    """`function`, asked once for each key; where the key is None it is asked each time."""
    known = {}

    @functools.wraps(function)
    def asked(*args, **kwargs):
        name = key(*args, **kwargs)
        if name is None:
            return function(*args, **kwargs)
        if name not in known:
            known[name] = copy.deepcopy(function(*args, **kwargs))
        return copy.deepcopy(known[name])  # what is handed out may be changed

    return asked


def key_of(sources, *more):
    places = tuple((source.scheme(), source.path) for source in sources)
    return (places, *more) if set(places) <= UNCHANGING else None


def key_of_composition(loader, config_name, overrides, run_mode, *args, **kwargs):
    if any("(" in text or "hydra.searchpath" in text for text in overrides):  # functions may look at files
        return None
    job = str(JobRuntime.instance().get("name"))
    return key_of(loader.get_sources(), config_name, tuple(overrides), run_mode, args, tuple(kwargs.items()), job)


def install():
    parse = functools.lru_cache(maxsize=None)(omegaconf.grammar_parser.parse)  # a tree that nobody changes
    omegaconf.base.parse = omegaconf._utils.parse = parse
    OverridesParser.parse_rule = once(
        OverridesParser.parse_rule, lambda parser, s, rule_name: None if "(" in s else (s, rule_name)
    )
    ConfigRepository.load_config = once(
        ConfigRepository.load_config, lambda repo, config_path: key_of(repo.sources, config_path)
    )
    ConfigLoaderImpl._compose_config_from_defaults_list = once(
        ConfigLoaderImpl._compose_config_from_defaults_list,
        lambda loader, defaults, repo: key_of(repo.get_sources(), repr(defaults)),
    )
    composed = once(ConfigLoaderImpl.load_configuration, key_of_composition)

    @functools.wraps(ConfigLoaderImpl.load_configuration)
    def composed_here(*args, **kwargs):
        config = composed(*args, **kwargs)
        config.hydra.runtime.cwd = os.getcwd()
        return config

    ConfigLoaderImpl.load_configuration = composed_here
