"""Train denoising diffusion models and draw samples from them, from the command line."""

__version__ = "0.1.0"
