"""How bytes move: transports, and how bytes become files.

Each transport makes one attempt per call and tells the truth about it; landing is the only way a
file appears, the inventory the only way it becomes known. Nothing here decides what to move, to
retry or to delete.

Read in this order: `errors` (what to do next), `files` (how bytes become files, what is here, and
how it goes), `transport` (the contract), then one chapter for each way: `http`, `p2p`, `ssh` (rsync
and base64), `s3`; `blobs` is where an archive lies. `throttle`, `telling`, `memory` and `workers`
serve them all.
"""
