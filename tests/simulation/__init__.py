"""Whole clusters in one event loop, in virtual time, from one seed.

What decides is the real thing: bridge, dispatcher, planner, folds. What moves bytes, the bus and
the disks are models. Read in this order: `clock` (time, and who runs next), `store` (the views'
store in memory), `bus` (the log with its faults), `nodes` (agents), `schedule` (what happens in a
run), `world` (a run), `search` (many runs, and the smallest that breaks a promise).
"""
