"""The prepared array into batches: which images a step sees, mirrored or not, and how they are changed.

In come a Store, a seed and a step; out go x_0 and labels on the device of the run. All of it is a function of (seed,
step, row): nothing random is kept, so a resumed run sees what the uninterrupted one would have seen.
"""
