"""Which choices cannot be trained together, or hardly; each answer names the remedy. (What a prediction needs of its
schedule, the denoiser checks.)"""

import torch

from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.diffusion.losses import Loss
from ddpm_cli.diffusion.timesteps import Timesteps

_MOST_LOPSIDED = 100.0  # times the median weight of the output's error, at T; epsilon weighed as x_0 has 2,000 or more
_MOST_AMPLIFIED = 20.0  # the network's error in x_0 out of noise: epsilon's sigma / alpha times, others' at most once


def check_objective(denoiser: Denoiser, loss: Loss, timesteps: Timesteps) -> None:
    """ValueError unless every part of the denoiser learns, from all the times that sampling visits."""
    schedule, variance = denoiser.schedule, denoiser.variance
    if variance.by_measurement:
        raise ValueError(
            "variance=analytic is measured on a trained model; train with variance=fixed_small, "
            "then run ddpm-analytic ckpt=CHECKPOINT and sample with variance=analytic"
        )
    if schedule.zero_terminal_snr and not timesteps.covers_all:
        raise ValueError(
            "these timesteps never reach t = T, where sampling starts at zero terminal SNR; "
            "choose timesteps=stratified or schedule.zero_terminal_snr=false"
        )
    if loss.uses_bound and not timesteps.covers_all:
        raise ValueError(
            "the variational bound is a sum over all timesteps, and these timesteps leave some out; "
            "choose timesteps=stratified or timesteps=loss_second_moment, or loss=denoising"
        )
    if variance.learned and not loss.uses_bound:
        raise ValueError(
            "this loss does not teach the variance; choose loss=hybrid or loss=variational_bound, "
            "or variance=fixed_small"
        )
    if loss.uses_bound and loss.trains_mean_by == "weighting" and not variance.learned:
        raise ValueError(
            "the bound in loss=hybrid teaches the variance alone, and this variance is fixed; "
            "choose variance=learned_range or loss=denoising"
        )
    if loss.uses_bound and loss.trains_mean_by == "bound" and loss.weighting.learned:
        raise ValueError(
            "the variational bound has weights of its own, so the uncertainty would learn nothing; "
            "choose weighting=v or loss=denoising"
        )
    if loss.one_step:
        _check_one_step(denoiser)


def lopsided(denoiser: Denoiser, loss: Loss) -> str | None:
    """What is to be told of a loss in which the error of the network's own output weighs most at the last times, so
    that it learns little else; None where it does not."""
    schedule = denoiser.schedule
    if loss.trains_mean_by == "bound" or loss.of_autoencoders or loss.weighting.learned or schedule.zero_terminal_snr:
        return None
    with torch.device("cpu"):
        times = torch.linspace(1, schedule.num_timesteps, 101, dtype=torch.float64).round()
        level = schedule.level(times)
        weight = loss.weighting(level) * denoiser.prediction(level, schedule.level(times - 1))[1] ** 2
    times_more = float(weight[-1] / weight.median())
    if not times_more > _MOST_LOPSIDED:
        return None
    return (
        f"the loss weighs the error of what the network predicts {times_more:.0e} times as much at the schedule's end "
        "as at most times, and teaches little else; choose weighting=epsilon or min_snr for it, or prediction=v"
    )


def _check_one_step(denoiser: Denoiser) -> None:
    schedule = denoiser.schedule
    if schedule.zero_terminal_snr:
        raise ValueError(
            "loss=consistency compares t = T with a time of nearly its noise level, and at zero terminal SNR there is "
            "none; choose schedule.zero_terminal_snr=false"
        )
    with torch.device("cpu"):  # also where a plan is made, without memory
        end = torch.tensor(schedule.num_timesteps)
        amplified = float(denoiser.prediction(schedule.level(end), schedule.level(end - 1))[1].abs())
    if amplified > _MOST_AMPLIFIED:
        raise ValueError(
            f"loss=consistency draws x_0 out of noise in one step, and this prediction's x_0 there has {amplified:.0f} "
            "times the network's error; choose prediction=v, x0, edm or flow, for the model that is tuned too"
        )
