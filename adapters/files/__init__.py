"""Files of a data root: how they appear, what is there, and how they go.

Nothing here opens a connection. Read in this order: `landing` (how a file appears) with
`partial` (from its beginning on) or `scattered` (in any order, by the block maps of `blocks` and
`maps`) and `places`, `group` and `durable` (how many small ones appear together), `arrivals` with
`turns` (which of those that come may appear), `leftovers` (what is swept up), then `inventory`
(what is here) with `walk`, `reading`, `known`, `index`, `contents` and `watching`, then what is
asked of a file: `digest`, `checks`, `sqlite` with `apart`, `rot`, `removal`. `merging`, with
`gametables` and `records`, brings the games or the rows of one database into another.
"""
