"""Naive formulas, written out as the papers have them, that the project's own must equal."""

import torch


def naive_loss(weighting, prediction, noise_schedule, output, x_0, noise, t):
    """The weighted loss of a network whose raw output is `output`, for one image at integer t, from alpha_bar alone."""
    alpha_bar = noise_schedule.alpha_bar[t]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x_t = alpha * x_0 + sigma * noise
    target = {"epsilon": noise, "x0": x_0, "v": alpha * noise - sigma * x_0}[prediction]
    error = ((output(x_t) - target) ** 2).mean()
    snr = alpha_bar / (1 - alpha_bar)
    on_x_0 = {"epsilon": snr, "x0": torch.ones_like(snr), "v": snr + 1, "min_snr": snr.clamp(max=5)}[weighting]
    return error * on_x_0 / {"epsilon": snr, "x0": 1, "v": snr + 1}[prediction]
