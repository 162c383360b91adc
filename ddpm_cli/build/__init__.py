"""From a resolved configuration, or a checkpoint, to objects.

In come plain dicts; out come denoisers, samplers, training steps and their state, joined here in Python so that "go to
definition" works. What only the objects know to be wrong is told as a UserError. No function run by a `_target_` is
looked up anywhere else, and none outside its group's module.
"""

from ddpm_cli.build.load import load_denoiser

__all__ = ["load_denoiser"]
