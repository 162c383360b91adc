"""Naive formulas, written out as the papers have them, that the project's own must equal."""

import torch


def naive_weight(weighting, snr):
    """The weight of the squared x_0 error."""
    return {
        "epsilon": snr,
        "x0": torch.ones_like(snr),
        "v": snr + 1,
        "min_snr": snr.clamp(max=5),
        "soft_min_snr": snr * 4 / (snr + 4),
        "p2": snr / (1 + snr),
        "edm": snr + 4,
        "flow": (1 + snr.sqrt()) ** 2,
    }[weighting]


def naive_loss(weighting, prediction, noise_schedule, output, x_0, noise, t):
    """The weighted loss of a network whose raw output is `output`, for one image at integer t, from alpha_bar alone:
    the plain error of what is predicted, times the weight for it."""
    alpha_bar, before = noise_schedule.alpha_bar[t], noise_schedule.alpha_bar[t - 1]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x_t = alpha * x_0 + sigma * noise
    snr = alpha_bar / (1 - alpha_bar)
    if prediction == "edm":  # Karras et al. 2022, Eq. 8, for sigma_data = 0.5
        s = sigma / alpha
        total = (s**2 + 0.25).sqrt()
        target = (x_0 - 0.25 / total**2 * x_t / alpha) / (s * 0.5 / total)
        return (
            ((output(x_t / alpha / total) - target) ** 2).mean() * naive_weight(weighting, snr) * (s / total / 2) ** 2
        )
    if prediction == "mean":  # DDPM Eq. 7
        beta = 1 - alpha_bar / before
        c_0 = before.sqrt() * beta / (1 - alpha_bar)
        target = c_0 * x_0 + (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar) * x_t
        return ((output(x_t) - target) ** 2).mean() * naive_weight(weighting, snr) / c_0**2
    if prediction == "flow":  # the velocity of the straight path, on which x_t / (alpha + sigma) lies
        error = ((output(x_t / (alpha + sigma)) - (noise - x_0)) ** 2).mean()
        return error * naive_weight(weighting, snr) * (sigma / (alpha + sigma)) ** 2
    target = {"epsilon": noise, "x0": x_0, "v": alpha * noise - sigma * x_0}[prediction]
    error = ((output(x_t) - target) ** 2).mean()
    return error * naive_weight(weighting, snr) / {"epsilon": snr, "x0": 1, "v": snr + 1}[prediction]


def naive_bound_term(noise_schedule, x_0, x_0_hat, x_t, t, variance):
    """The bound's term at integer t > 1 in bits per dimension, for a reverse step of the given variance (DDPM Eq. 8
    with the KL of two Gaussians written out)."""
    alpha_bar, before = noise_schedule.alpha_bar[t], noise_schedule.alpha_bar[t - 1]
    beta = 1 - alpha_bar / before
    tilde = beta * (1 - before) / (1 - alpha_bar)
    c_0 = before.sqrt() * beta / (1 - alpha_bar)
    kl = 0.5 * (torch.log(variance / tilde) + (tilde + c_0**2 * (x_0 - x_0_hat) ** 2) / variance - 1)
    return kl.mean() / torch.log(torch.tensor(2.0, dtype=torch.float64))
