"""The guarantee, run against real processes that are killed: `dataplane prove`.

A cluster works while an adversary with a seed kills, pauses, cuts off and damages whatever it
likes; then everything is left in peace, and the log and the disks alone say what became of it.
Nothing here is used by the data plane itself. Read in this order: `servers` and `cable` (the bus,
and what can be cut), `cluster` (the processes), `scene` (what is going on), `workload` (what they
are given to do), `adversary` (what is done to them), `verdict` (what became of it), `bundle` (what
is kept of a failure), `run` (all of it).
"""
