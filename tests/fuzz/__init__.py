"""Foreign bytes against every decoder that takes some.

A decoder may give a value or raise the one error that it declares; nothing else, within its time
and within its memory. `targets` says which there are and how their input is made; `tests/unit/
test_fuzz.py` runs a few of each, ``python -m tests.fuzz --inputs 1000000`` as many as wanted.
"""
