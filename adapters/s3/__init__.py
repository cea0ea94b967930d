"""The bucket: objects by content, and manifests that name them, written last.

Read in this order: `layout` (keys and manifests), `store` with `wire`, `flow` and `errors` (one
bucket's questions and answers), `transport` with `source` and `small` (many small objects at once),
`bucket` (manifests and restores), `sealing`, and `blobs` for an archive.
"""
