"""Over SSH: rsync for large files, base64 where there is nothing but a shell.

Read in this order: `connections` (whom we trust, as whom we appear), `shell` and `channel`, then
the transports: `rsync` with `rsync_words`, `rsync_run`, `aside` and `rsync_many` (many small files
by one rsync), and `base64_ssh`; `push` is what both do at a target.
"""
