"""``python -m dataplane`` is the ``dataplane`` command."""

from dataplane.cli import main

main()
