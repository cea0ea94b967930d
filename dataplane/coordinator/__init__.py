"""The coordinator: the shell around the decisions. Any number may run, one leads.

Read in this order: `coordinator`, `lease` and `leading` (who leads, and what only he does),
`bridge` with `trouble` (chains), `dispatch` and `granting` (transfers), `sweeping` with
`staging`, `deleting`, `provisioning`, then what it shows: `queries`, `monitor`, `tracer`.
"""
