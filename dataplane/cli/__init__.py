"""The ``dataplane`` command. It asks, shows and starts; what it shows comes from elsewhere.

`app` is the command with what all commands share; each module beside it adds a group of them. How
things look is `show`.
"""

# In the order in which --help shows them.
# isort: off
from dataplane.cli import processes, proving
from dataplane.cli import saying
from dataplane.cli import looking, top, links, trainings, rejecting
from dataplane.cli import reasons, policies
from dataplane.cli import auditing, travelling, archiving
from dataplane.cli import bucket, draining, deleting, merging, keys

# isort: on
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
    "merging",
    "policies",
    "processes",
    "proving",
    "reasons",
    "rejecting",
    "saying",
    "top",
    "trainings",
    "travelling",
]
