"""Reading the log again: nothing here can write to it, save a restore into an empty one.

Read in this order: `sources` (the live log, an archive, a file), `replay` (timelines, chains,
refolds), `facts` and `causes`, `moments` and `comparing` (what was known at a time), `whatif` (what
another policy would have planned), `archive`, `archiving` and `exporting`.
"""
