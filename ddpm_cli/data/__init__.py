"""Data sets, prepared once into one array and indexed in training."""
