"""What we now know: folds of the log, and the store they are kept in.

A view is only ever the fold of the log up to its checkpoint: it can be deleted at any time and
comes back byte for byte. Nothing here decides, publishes or reads a clock. Read in this order:
`store` (LMDB), `view` (what a fold is), `catalog` with `standing` and `tallies`, `nodes`, `links`,
`transfers`, `chains`, `trainings`, `rejected`, `guards` (the folds), `fold` (all of them, with
their checkpoint), `cluster` (all of them as one reading), `projector` (the log into the store),
`snapshot` and `travel` (the views as they were).
"""
