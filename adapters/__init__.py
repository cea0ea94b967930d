"""How bytes move: transports, and how bytes become files.

Each transport makes one attempt per call and tells the truth about it; landing is the only way a
file appears, the inventory the only way it becomes known. Nothing here decides what to move, to
retry or to delete. Read in this order: `transport` (the contract), `landing` (bytes to a file, on
`partial`, `places` and `checks`), `sqlite` (live databases), `inventory` (what this node holds: it
`walk`s, has a `reading` of each file, and remembers what is `known`, in an `index`, and where the
`contents` are), `removal` (the only way one goes), `server` and `http` (files by digest, on
`signing`, `tls`, `receiving` and `upload`), `p2p` (small entries in `small` batches; a large one by
its `blocks`, in a `gathering`: what is `nearby` or differs in `pages` only, then a `swarming` of
`peer`s by the rules of a `swarm`, told by `gossip`, into a `scattered` file; `offers` is the other
side, `maps` keeps block maps), `ssh` (whom to trust; a `channel` to a `shell` there;
`ssh_push`), over it `rsync` (`rsync_words`, `rsync_run`, `aside`) and `base64_ssh`, `s3` (with
`s3_layout`, `sealing` and `s3_store`, on `s3_wire`, `s3_flow` and `s3_errors`; `s3_bucket` for what
a bucket holds as a whole), `blobs` (where an archive lies), `throttle` and `telling`.
"""
