"""Files into one array, decoded once: found (`listing`, `archives`, `tables`, `npy`, `download`), decoded (`decoding`,
on all cores by `pool`), brought to one size and kept (`cache`) for all later runs.

In come paths and a key that describes the set; out goes a Store whose items are mapped from the prepared folder. A set
is prepared as a whole or not at all, by one run at a time, whoever is killed on the way. One that is too large for that
is decoded as it is asked for (`on_demand`).
"""
