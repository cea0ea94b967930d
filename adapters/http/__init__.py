"""Over HTTP: a file server on every node, and the transport that fetches from it and sends to it.

Read in this order: `signing` (who may fetch or send what), `server` with `receiving`, `transport`
with `download` and `upload`, `tls`.
"""
