"""The command line, from what was typed to a body that runs and an exit code. No torch.

In comes sys.argv; out goes a checked, plain configuration with its Context, or at most three lines on stderr. `main`
leads: `flags` reads, `preflight` accepts (with `override_checks` for each word and `output_checks` for the folder), and
the body runs once, on the very composition that was accepted, or in Hydra's sweep. Nothing is written before that.
"""
