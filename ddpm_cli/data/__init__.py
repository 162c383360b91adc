"""Data sets: a function each, named by its `_target_`, from the keywords of a configuration to a Store.

In come images or recordings in a folder, an archive, an array or a table, the files of a published set, or a formula;
`prepare/` makes one array of them, once. Out go, by way of `loading/`, the batches of a run: x_0 as float32 in
[-1, 1], and labels. A set knows nothing of models, steps or devices, and what it returns is a function of its keywords
and files alone, told by the store's fingerprint.
"""
