"""Over HTTP: a file server on every node, and the transport that fetches from it and sends to it.

Read in this order: `signing` (who may fetch or send what), `server` with `receiving`, `transport`
with `answers`, `download`, `upload` and `packed`, `small` with `peer`, `batches` and `arriving`
(many small files at once), `tls`.
"""
