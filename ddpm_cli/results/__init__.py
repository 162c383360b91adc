"""What runs came to: their folders read back, compared in tables, drawn in charts. No torch.

In come folders of runs, whole or broken off; out go rows, CSV, Markdown and SVG. `runs` reads one folder or all below
one, `table` lays them side by side: the settings that differ, the metrics with their intervals, best first; `chart`
draws curves and points with intervals, and `quality` what samplers reach at which cost. `hparams` is for TensorBoard.
"""
