"""One optimiser step, the loop around it, and what is measured as it goes.

In come objects that `build` has joined; nothing here knows a configuration or a run folder: what the loop needs of
those, it asks for through `loop.Callbacks`. Out come a trained `TrainState`, metrics, and what trackers show of them.
Read `step` first. Every draw is a function of (seed, step, row), so stopped, split or shared runs end in the same
weights.
"""
