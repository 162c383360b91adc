"""What values the knobs may take: one table, keyed by the dotted key, known without torch."""

import os
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ddpm_cli.config.durations import EXAMPLES, seconds_of
from ddpm_cli.config.rules import ANYTHING, Rule, either, list_of, matching, nullable, one_of, real, refuse, whole

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
_SIDE = whole(1, 8192)  # 192 MiB an image
_RANGE = list_of(FINITE, length=2)
PATH = Rule(
    "a path",
    lambda value: os.path.expanduser(value) if isinstance(value, str) and value and "\0" not in value else refuse(),
    example="PATH",
)
_NAME = matching(
    "at most 50 letters, digits, dots, dashes and underscores, the first a letter or digit", r"[^\W_][\w.-]{,49}"
)
NAME = replace(_NAME, accept=lambda value: _NAME(str(value) if type(value) is int else value), example="NAME")
PACKAGE = matching("the name of a package", r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LABEL = whole(0, 10**6)
CLASS = either(LABEL, Rule("a name", lambda value: TEXT(value) or refuse()))  # each and none look like names
DURATION = Rule(f"a time with its unit, such as {EXAMPLES}", lambda value: value if seconds_of(value) else refuse())
# The figures of each metric that a run may measure as it goes; the ends of an interval are NAME_low and NAME_high.
FIGURES = {
    "fid": ("fid",),
    "kid": ("kid",),
    "inception_score": ("inception_score",),
    "precision_recall": ("precision", "recall"),
    "accuracy": ("accuracy",),
    "nll": ("nll_bound", "nll_ode"),
}
HIGHER_IS_BETTER = {"inception_score", "precision", "recall", "accuracy"}
V_ERRORS = ("v_error_train", "v_error_heldout")
METRICS = (*FIGURES, "memorisation")  # of ddpm-eval
DEVICE = replace(matching("one of auto, cpu, cuda, cuda:N, mps", r"auto|cpu|cuda(:\d{1,3})?|mps"), example="cpu")

# The first match counts. Knobs whose default is null are nullable without saying so, and those whose default is auto
# take that.
TABLE: dict[str, Rule] = {
    "seed": SEED,
    "name": NAME,
    "device": DEVICE,
    "devices": either(one_of("auto"), whole(1, 1024)),
    "threads": either(one_of("auto"), whole(1, 1024)),
    "precision": one_of("auto", "fp32", "tf32", "bf16", "fp16"),
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
    "training.keep_best": one_of("loss", *V_ERRORS, *(figure for figures in FIGURES.values() for figure in figures)),
    "training.heldout_every": COUNT_OR_NEVER,
    "training.stop_at": COUNT,
    "training.log_every": COUNT,
    "training.sample_every": COUNT_OR_NEVER,
    "training.num_samples": whole(1, 10**6),
    "training.checkpoint_every": COUNT,
    "training.keep_checkpoints": COUNT,
    "training.max_grad_norm": nullable(POSITIVE),
    "training.label_dropout": FRACTION,
    "training.augment": FRACTION,
    "training.freeze": list_of(matching("the name of a module, as down_blocks.0", r"[A-Za-z_][\w.]*")),
    "eval_every": COUNT,
    "eval.metrics": list_of(one_of(*FIGURES), least=1),
    "*.num_draws": whole(2, 1000),
    "*.num_strata": whole(2, 1000),
    "*.tolerance": real("a number from 1e-10 to 0.1", lambda value: 1e-10 <= value <= 0.1),
    "dataset.root": PATH,
    "dataset.cache": PATH,
    "dataset.split": one_of("train", "test", "all"),
    "dataset.channels": whole(1, 1024),  # each set says which of these it has; those of images: 1 or 3
    "dataset.image_size": either(_SIDE, list_of(_SIDE, length=2)),  # [height, width] of sets that are not square
    "dataset.images": TEXT,
    "dataset.labels": TEXT,
    "dataset.files": TEXT,
    "dataset.image_column": TEXT,
    "dataset.label_column": TEXT,
    "dataset.layout": one_of("NHW", "NHWC", "NCHW"),
    "dataset.range": either(one_of("each"), either(_RANGE, list_of(_RANGE, least=1))),
    "dataset.dtype": one_of("uint8", "uint16", "float32"),
    "dataset.num_classes": LABEL,  # null, to count them, where that is the default: in a folder
    "dataset.num_images": COUNT,
    "dataset.num_sounds": COUNT,
    "dataset.sample_rate": whole(1000, 384000),
    "dataset.num_samples": whole(16, 2**24),
    "dataset.held_out": whole(1, 1000),
    "dataset.long": one_of("cut", "split"),
    "dataset.label_pattern": TEXT,
    "representation.channels": whole(1, 2),
    "representation.fft_size": whole(8, 2**16),
    "representation.hop": whole(1, 2**15),
    "representation.exponent": real("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "representation.scale": POSITIVE,
    "representation.std": POSITIVE,
    "representation.frames_multiple": whole(1, 1024),
    "dataset.seed": SEED,
    "dataset.on_error": one_of("stop", "skip"),
    "dataset.max_skipped": BELOW_ONE,
    "model.in_channels": whole(1, 1024),
    "model.num_classes": nullable(LABEL),
    "model.channels": either(WIDTH, list_of(WIDTH, least=1)),
    "model.channel_mult": list_of(whole(1, 1024), least=1),
    "model.blocks_per_level": whole(1, 1024),
    "model.attention_levels": list_of(whole(0, 63)),
    "model.dropout": BELOW_ONE,
    "model.patch_size": whole(1, 1024),
    "model.dims": whole(1, 2),
    "model.head_channels": nullable(WIDTH),
    "model.num_heads": nullable(whole(1, 1024)),
    "model.norm_num_groups": nullable(WIDTH),
    "model.norm_eps": POSITIVE,
    "model.downsample_padding": whole(0, 1),
    "model.flip_sin_to_cos": FLAG,
    "model.freq_shift": whole(0, 1),
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
    "schedule.shift": real("a number from 0.05 to 20", lambda value: 0.05 <= value <= 20),
    "schedule.sigma_min": POSITIVE,
    "schedule.sigma_max": POSITIVE,
    "schedule.sigma_data": POSITIVE,
    "schedule.image_size": either(whole(1, 16384), list_of(whole(1, 16384), length=2)),
    "schedule.noise_size": whole(1, 16384),
    "schedule.path": PATH,
    "schedule.holds": one_of("alpha_bar", "beta", "log_snr"),
    "weighting.sigma_data": POSITIVE,
    "weighting.k": POSITIVE,
    "weighting.channels": WIDTH,
    "timesteps.mean": FINITE,
    "timesteps.std": POSITIVE,
    "timesteps.scale": POSITIVE,
    "timesteps.shift": LOG_SNR,
    "timesteps.sigma_data": POSITIVE,
    "timesteps.history": whole(1, 10**4),
    "timesteps.uniform_share": FRACTION,
    "schedule.max_beta": real("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "optimizer.lr": POSITIVE,
    "optimizer.betas": list_of(BELOW_ONE, length=2),
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.weight_decay_of": one_of("matrices", "all"),
    "optimizer.momentum": BELOW_ONE,
    "optimizer.warmup_steps": COUNT_OR_NEVER,
    "optimizer.decay": one_of("none", "linear", "cosine"),
    "ema.decay": BELOW_ONE,
    "ema.half_life": POSITIVE,
    "ema.ramp": POSITIVE,
    "ema.lengths": list_of(real("a number from 0.01 to 0.25", lambda value: 0.01 <= value <= 0.25), least=1),
    "ema.snapshots": whole(0, 10**4),
    "loss.bound_weight": NOT_NEGATIVE,
    "loss.huber_delta": nullable(POSITIVE),
    "loss.q": real("a number above 1", lambda value: value > 1),
    "loss.num_stages": whole(1, 64),
    "loss.k": NOT_NEGATIVE,
    "loss.b": POSITIVE,
    "loss.huber_c": POSITIVE,
    "weighting.gamma": POSITIVE,
    "sampler.num_steps": nullable(whole(1, 10**6)),
    "sampler.spacing": nullable(
        either(
            one_of("trailing", "leading", "linspace", "karras", "log_snr", "log_snr_to_1"),
            list_of(NOT_NEGATIVE, least=2),
        )
    ),
    "sampler.rho": real("a number of at least 1", lambda value: value >= 1),
    "sampler.correct": one_of("auto", "always"),
    "sampler.eta": FRACTION,
    "sampler.order": whole(1, 3),
    "sampler.gamma": real("a finite number of at least 1", lambda value: value >= 1),
    "sampler.sigma_max": POSITIVE,
    "sampler.sigma_last": POSITIVE,
    "sampler.s_churn": NOT_NEGATIVE,
    "sampler.s_min": NOT_NEGATIVE,
    "sampler.s_max": NOT_NEGATIVE,
    "sampler.s_noise": NOT_NEGATIVE,
    "num_images": whole(1, 10**7),
    "eval.num_images": whole(2, 10**7),
    "*.num_images": whole(2, 10**7),
    "num_levels": whole(2, 10**5),
    "data_root": PATH,
    "format": one_of("diffusers", "safetensors", "onnx", "torch_export"),
    "label": nullable(replace(CLASS, text="the number or name of a class, or none")),
    "license": matching("the short name of a licence, such as mit or cc-by-4.0", r"[A-Za-z0-9][\w.+-]{,49}"),
    "batch_size": whole(1, 2**20),
    "eval.batch_size": whole(1, 2**20),
    "eval.seed": SEED,
    "images": PATH,
    "data": PATH,
    "metrics": list_of(one_of(*METRICS), least=1),
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
    "edit.sound": PATH,
    "edit.gap": list_of(NOT_NEGATIVE, length=2),
    "edit.mask": PATH,
    "edit.to": PATH,
    "edit.resample": whole(1, 1000),
    "edit.jump_length": whole(1, 10**6),
    "edit.strength": real("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "edit.frames": whole(2, 10000),
    "weights": either(one_of("ema", "raw"), matching("ema@LENGTH, such as ema@0.08", r"ema@0?\.\d{1,6}")),
    "features.weights": PATH,
    "features.path": PATH,
    "features.num_steps": COUNT,
    "features.input": one_of("uint8", "unit", "signed"),
    "features.image_size": whole(1, 8192),
    "features.channels": whole(1, 3),
    "paths": list_of(PATH),
    "out": PATH,
    "title": TEXT,
    "num_runs": whole(1, 1000),
    "num_previews": whole(1, 100),
    "*.root": PATH,
    "*.cache": PATH,
}


def rule_for(key: str, default: Any, *, by_table: bool = True) -> Rule:
    """The rule for a knob: the table's, or what its default's type implies; null and auto are allowed where they are
    the default."""
    rule = next((rule for pattern, rule in TABLE.items() if fnmatchcase(key, pattern)), None) if by_table else None
    rule = rule or _rule_of_type(default)
    if default == "auto" and not _accepts(rule, default):
        rule = either(one_of("auto"), rule)
    return nullable(rule) if default is None and not rule.nullable else rule


def _accepts(rule: Rule, value: Any) -> bool:
    try:
        rule(value)
    except ValueError:
        return False
    return True


def _rule_of_type(default: Any) -> Rule:
    for kind, rule in ((bool, FLAG), (int, ANY_WHOLE), (float, FINITE), (str, TEXT)):
        if isinstance(default, kind):
            return rule
    if isinstance(default, list):
        kinds = {type(item) for item in default}
        return list_of(_rule_of_type(default[0]) if len(kinds) == 1 else ANYTHING)
    return ANYTHING
