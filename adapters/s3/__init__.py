"""The bucket: objects by content, and manifests that name them, written last.

Read in this order: `layout` (keys and manifests), `store` with `wire`, `flow` and `errors` (one
bucket's questions and answers), `transport`, `bucket` (manifests and restores), `sealing`.
"""
