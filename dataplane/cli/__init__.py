"""The ``dataplane`` command. It asks, shows and starts; what it shows comes from elsewhere.

`app` is the command with what all commands share; each module beside it adds a group of them:
`processes`, `proving`, `saying`, `looking`, `reasons`, `policies`, `links`, `rejecting`,
`auditing`, `bucket`, `deleting`, `keys`, `top`, `archiving`, `draining`, `travelling`. How things
look is `show`.
"""

from dataplane.cli import (
    archiving,
    auditing,
    bucket,
    deleting,
    draining,
    keys,
    links,
    looking,
    policies,
    processes,
    proving,
    reasons,
    rejecting,
    saying,
    top,
    travelling,
)
from dataplane.cli.app import main

__all__ = [
    "archiving",
    "auditing",
    "bucket",
    "deleting",
    "draining",
    "keys",
    "links",
    "looking",
    "main",
    "policies",
    "processes",
    "proving",
    "reasons",
    "rejecting",
    "saying",
    "top",
    "travelling",
]
