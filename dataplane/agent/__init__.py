"""A node's agent: says what the node holds, and carries out what it is asked.

Read in this order: `agent`, `observing` with `footing` and `reconciling` (what it says, and to
which log), `ground` (which disk it stands on), `succession` (whose name it takes over),
`deliveries` (how it works on what it is given), `transfers` with `transports`, `fetching`,
`receipts`, `pushing`, `company` and `together` (small ones as groups), `relaying`, `bucket`,
`attempt`, `progress` and `saying` (what it moves, and what it says of that), `asking` and
`reaching` (what agents ask each other), `custody`, `scrub`, `diskwatch`, `tidying` and `machine`
(how it cares for its replicas and itself), `consolidating` and `apart` (how games come together in
one file).
"""
