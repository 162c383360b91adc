"""The optimiser loop: batches, one step, its state, moving averages and what is written as it goes."""
