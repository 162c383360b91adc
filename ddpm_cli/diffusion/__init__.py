"""The mathematics of diffusion, one module an axis: schedule, prediction, variance, weighting, timesteps, losses,
samplers, editing. Each opens with how its options are called and has the Protocol of what they offer.

In come tensors: images in [-1, 1], times, noise, a network. Out come estimates of x_0, losses of each image and steps
from noise to image. Nothing here draws, reads a file or knows of a configuration: it imports torch alone.
"""
