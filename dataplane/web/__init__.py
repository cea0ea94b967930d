"""The page: the cluster at a glance, and from every number a way to the facts behind it.

It only reads, loads nothing from elsewhere and works without scripts; with them it follows what
happens. Read in this order: `access` (who may look), `draw` (rows to HTML), `live` (what changed,
to those who watch), `pages` (one handler a page), `server`.
"""

from dataplane.web.server import WebServer

__all__ = ["WebServer"]
