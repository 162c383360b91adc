"""Test doubles: denoisers that are exact for data whose law is known, and small networks given by a formula."""

import math

import torch

from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.gaussian import expand


def exact_gaussian(schedule, mean, std):
    """E[x_0 | x_t] for data N(mean, std²): the denoiser a perfect network would be."""

    def denoise(x_t, t, cond=None):
        level = schedule.level(t)
        alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return Denoised(mean + gain * (x_t - alpha * mean))

    return denoise


class ToyNetwork(torch.nn.Module):
    """The toy networks of the reference vectors: u = (t - 1)/1000, `head` of (x, u), and a variance output sin(1.3 x +
    u)."""

    def __init__(self, head, learned):
        super().__init__()
        self.head, self.learned = head, learned

    def forward(self, x, time, cond=None):
        u = (time / 1000).reshape(-1, 1, 1, 1)
        out = self.head(x, u)
        return torch.cat([out, torch.sin(1.3 * x + u)], 1) if self.learned else out


def toy_epsilon(x, u):
    return torch.tanh(0.7 * x + u)


def toy_x0(x, u):
    return 0.8 * torch.tanh(0.9 * x) * (1 - 0.2 * u)


def exact_mixture(schedule, weights=(0.3, 0.5, 0.2), means=(-0.8, 0.2, 0.9), stds=(0.05, 0.1, 0.2)):
    """E[x_0 | x_t] for data of a Gaussian mixture, each number for itself."""

    def denoise(x_t, t, cond=None):
        level = schedule.level(t)
        alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
        logs, estimates = [], []
        for weight, mean, std in zip(weights, means, stds, strict=True):
            variance = alpha**2 * std**2 + sigma**2
            logs.append(math.log(weight) - 0.5 * (variance.log() + (x_t - alpha * mean) ** 2 / variance))
            estimates.append(mean + alpha * std**2 / variance * (x_t - alpha * mean))
        shares = torch.stack(logs).softmax(0)
        return Denoised((shares * torch.stack(estimates)).sum(0))

    return denoise
