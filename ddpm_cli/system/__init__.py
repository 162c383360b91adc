"""This machine and this process: what the rest must know of them, and asks of the operating system.

`device`, `precision` and `memory` choose where and how to compute; `launch_env` tells who started the process, `ranks`
starts others beside it, and `signals` says how it is to end; `files` and `lock` are for what must be whole or alone;
`tree` walks nested dicts. In come names and paths; out come choices, and errors with their remedy. What the command
line needs imports no torch at its top: a refusal must not wait seconds for it.
"""
