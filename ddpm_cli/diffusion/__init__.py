"""The mathematics of diffusion: levels, schedules, predictions, variances, losses and samplers. Imports torch alone."""
