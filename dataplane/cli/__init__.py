"""The ``dataplane`` command. It asks, shows and starts; what it shows comes from elsewhere.

`app` is the command with what all commands share; each module beside it adds a group of them:
`processes`, `saying`, `looking`, `auditing`. How things look is `show`.
"""

from dataplane.cli import auditing, looking, processes, saying
from dataplane.cli.app import main

__all__ = ["auditing", "looking", "main", "processes", "saying"]
