"""A run on disk: found, locked, saved, resumed.

`find` names checkpoints and runs without opening them (no torch), `checkpoint` reads and writes the files, `folder` is
a run's own folder while it trains, held by one process. `resume` lays newly typed settings over stored ones,
`hydra_record` remembers the command lines, and `result` says how it ended.
"""
