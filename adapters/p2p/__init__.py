"""From everyone who has them: block maps, deltas, and swarms that share one source's copy.

Read in this order: `transport`, then how it gathers the blocks of a content: `asking`, `nearby`
and `pages` (what need not travel), `gathering`, `swarm`, `swarming` and `gossip` (from many at
once), `offers` (what this node gives of a content). Small files come as over HTTP, many at once.
"""
