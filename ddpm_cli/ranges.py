"""What values the knobs may take: one table, keyed by the dotted key, known without torch."""

import os
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ddpm_cli.durations import EXAMPLES, seconds_of
from ddpm_cli.rules import ANYTHING, Rule, either, list_of, matching, nullable, one_of, real, refuse, whole

FLAG = one_of(True, False)
FINITE = real()
ANY_WHOLE = whole(-(2**63), 2**63 - 1)
TEXT = Rule("text", lambda value: value if isinstance(value, str) and "\0" not in value else refuse())
COUNT = whole(1, 10**9)
COUNT_OR_NEVER = whole(0, 10**9)
SEED = whole(0, 2**63 - 1)
WIDTH = whole(1, 65536)
POSITIVE = real("a finite number above 0", lambda value: value > 0)
NOT_NEGATIVE = real("a finite number of at least 0", lambda value: value >= 0)
FRACTION = real("a number from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = real("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
INSIDE = real("a number above 0 and below 1", lambda value: 0 < value < 1)
LOG_SNR = real("a number from -40 to 40", lambda value: -40 <= value <= 40)
PATH = Rule(
    "a path",
    lambda value: os.path.expanduser(value) if isinstance(value, str) and value and "\0" not in value else refuse(),
    example="PATH",
)
PACKAGE = matching("the name of a package", r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LABEL = whole(0, 10**6)
CLASS = either(LABEL, Rule("a name", lambda value: TEXT(value) or refuse()))  # each and none look like names
DURATION = Rule(f"a time with its unit, such as {EXAMPLES}", lambda value: value if seconds_of(value) else refuse())
DEVICE = replace(matching("one of auto, cpu, cuda, cuda:N, mps", r"auto|cpu|cuda(:\d{1,3})?|mps"), example="cpu")

# The first match counts. Knobs whose default is null are nullable without saying so.
TABLE: dict[str, Rule] = {
    "seed": SEED,
    "device": DEVICE,
    "devices": either(one_of("auto"), whole(1, 1024)),
    "precision": one_of("auto", "fp32", "bf16", "fp16"),
    "compile": one_of("auto", True, False),
    "run_dir": PATH,
    "out_dir": PATH,
    "resume": PATH,
    "init": PATH,
    "budget": DURATION,
    "ckpt": PATH,
    "trust": list_of(PACKAGE),
    "training.num_steps": COUNT,
    "training.batch_size": whole(1, 2**20),
    "training.micro_batch_size": either(one_of("auto"), whole(1, 2**20)),
    "training.on_nonfinite": one_of("stop", "rollback"),
    "training.keep_best": one_of("loss"),
    "training.stop_at": COUNT,
    "training.log_every": COUNT,
    "training.sample_every": COUNT_OR_NEVER,
    "training.num_samples": whole(1, 10**6),
    "training.checkpoint_every": COUNT,
    "training.keep_checkpoints": COUNT,
    "training.max_grad_norm": nullable(POSITIVE),
    "training.label_dropout": FRACTION,
    "training.augment": FRACTION,
    "dataset.root": PATH,
    "dataset.cache": PATH,
    "dataset.split": one_of("train", "test", "all"),
    "dataset.channels": whole(1, 1024),
    "dataset.image_size": whole(1, 16384),
    "dataset.num_classes": nullable(LABEL),
    "dataset.num_images": COUNT,
    "dataset.seed": SEED,
    "dataset.on_error": one_of("stop", "skip"),
    "model.in_channels": whole(1, 1024),
    "model.num_classes": nullable(LABEL),
    "model.channels": either(WIDTH, list_of(WIDTH, least=1)),
    "model.channel_mult": list_of(whole(1, 1024), least=1),
    "model.blocks_per_level": whole(1, 1024),
    "model.attention_levels": list_of(whole(0, 63)),
    "model.dropout": BELOW_ONE,
    "model.patch_size": whole(1, 1024),
    "model.head_channels": nullable(WIDTH),
    "model.depth": whole(1, 1024),
    "model.heads": whole(1, 1024),
    "model.mlp_ratio": whole(1, 64),
    "model.augment_dim": whole(0, 1024),
    "prediction.sigma_data": POSITIVE,
    "schedule.num_timesteps": whole(1, 10**6),
    "schedule.beta_start": INSIDE,
    "schedule.beta_end": INSIDE,
    "schedule.beta": INSIDE,
    "schedule.s": NOT_NEGATIVE,
    "schedule.start": FINITE,
    "schedule.end": FINITE,
    "schedule.mean": FINITE,
    "schedule.log_snr_max": LOG_SNR,
    "schedule.log_snr_min": LOG_SNR,
    "schedule.tau": POSITIVE,
    "schedule.scale": POSITIVE,
    "schedule.sigma_min": POSITIVE,
    "schedule.sigma_max": POSITIVE,
    "schedule.image_size": either(whole(1, 16384), list_of(whole(1, 16384), length=2)),
    "schedule.noise_size": whole(1, 16384),
    "schedule.path": PATH,
    "schedule.holds": one_of("alpha_bar", "beta", "log_snr"),
    "weighting.sigma_data": POSITIVE,
    "weighting.k": POSITIVE,
    "weighting.channels": WIDTH,
    "timesteps.mean": FINITE,
    "timesteps.std": POSITIVE,
    "timesteps.history": whole(1, 10**4),
    "timesteps.uniform_share": FRACTION,
    "schedule.max_beta": real("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "optimizer.lr": POSITIVE,
    "optimizer.betas": list_of(BELOW_ONE, length=2),
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.momentum": BELOW_ONE,
    "optimizer.warmup_steps": COUNT_OR_NEVER,
    "optimizer.decay": one_of("none", "linear", "cosine"),
    "ema.decay": BELOW_ONE,
    "loss.bound_weight": NOT_NEGATIVE,
    "loss.huber_delta": nullable(POSITIVE),
    "weighting.gamma": POSITIVE,
    "sampler.num_steps": nullable(whole(1, 10**6)),
    "sampler.spacing": nullable(
        either(
            one_of("trailing", "leading", "linspace", "karras", "log_snr", "log_snr_to_1"),
            list_of(NOT_NEGATIVE, least=2),
        )
    ),
    "sampler.eta": FRACTION,
    "sampler.order": whole(1, 3),
    "sampler.gamma": real("a finite number of at least 1", lambda value: value >= 1),
    "sampler.s_churn": NOT_NEGATIVE,
    "sampler.s_min": NOT_NEGATIVE,
    "sampler.s_max": NOT_NEGATIVE,
    "sampler.s_noise": NOT_NEGATIVE,
    "num_images": whole(1, 10**7),
    "num_levels": whole(2, 10**5),
    "data_root": PATH,
    "batch_size": whole(1, 2**20),
    "labels": replace(
        either(CLASS, list_of(CLASS, least=1)),
        text="the number or name of a class, a list of such as [3, 7], each, none",
    ),
    "clip": one_of(True, False, "dynamic"),
    "guidance.scale": NOT_NEGATIVE,
    "guidance.interval": list_of(NOT_NEGATIVE, length=2),
    "guidance.rescale": FRACTION,
    "guidance.guide_ckpt": PATH,
    "guidance.cads.noise": NOT_NEGATIVE,
    "guidance.cads.start": FRACTION,
    "guidance.cads.end": FRACTION,
    "guidance.cads.mixing": FRACTION,
    "edit.image": PATH,
    "edit.mask": PATH,
    "edit.to": PATH,
    "edit.resample": whole(1, 1000),
    "edit.strength": real("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "edit.frames": whole(2, 10000),
    "weights": one_of("ema", "raw"),
    "*.root": PATH,
    "*.cache": PATH,
}


def rule_for(key: str, default: Any, *, by_table: bool = True) -> Rule:
    """The rule for a knob: the table's, or what its default's type implies; null is allowed where it is the default."""
    rule = next((rule for pattern, rule in TABLE.items() if fnmatchcase(key, pattern)), None) if by_table else None
    rule = rule or _rule_of_type(default)
    return nullable(rule) if default is None and not rule.nullable else rule


def _rule_of_type(default: Any) -> Rule:
    for kind, rule in ((bool, FLAG), (int, ANY_WHOLE), (float, FINITE), (str, TEXT)):
        if isinstance(default, kind):
            return rule
    if isinstance(default, list):
        kinds = {type(item) for item in default}
        return list_of(_rule_of_type(default[0]) if len(kinds) == 1 else ANYTHING)
    return ANYTHING
