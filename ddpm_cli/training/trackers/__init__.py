"""Where a run can be looked at while it goes: TensorBoard's files, Weights & Biases, MLflow, or several at once.

In come figures by TensorBoard's tags, pictures, sounds, settings and how the run ended; each goes to every tracker of
the run. They are for looking at: what one raises is told once, and it is left out from then on.
"""
