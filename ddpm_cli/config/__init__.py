"""The configuration: where its files are, how they are composed, and what each value may be. No torch.

In come the YAML files of configs/ and of the user, and overrides; out goes a plain dict in which every value has been
accepted. `knobs` is the table of ranges, `check` holds a composition against it and against the keys there are,
`relations` holds values against one another, `targets` says which code a `_target_` may name, and `messages` has the
words for what was probably meant.
"""
