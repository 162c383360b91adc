"""A training run around its loop: what ddpm-train does once its command line is validated.

In comes a checked configuration; out come a run folder and the final loss. `run` tells it in five stages; `launch` and
`rank` are the two ends of the talk between rank 0 and the others, `probe` and `budget` measure before the first step,
and `callbacks` is what the loop asks of the folder. Rank 0 alone touches files, signals and the terminal.
"""
