"""Faults put into runs on purpose: one function for each goal of the reliability of runs, R1 to R20.

`scripts/check_reliability.py` runs them all and prints a table; the test suite runs a short version of each.
"""
