"""The two errors a door turns into one line: the user's (exit 2) and the world's (exit 3)."""


class UserError(ValueError):
    """The user's mistake: names the key or file, the value, the rule and the remedy in at most three lines."""


class WorldError(RuntimeError):
    """What neither the user nor we did wrong: a full disk, no memory, no network, a non-finite loss."""
