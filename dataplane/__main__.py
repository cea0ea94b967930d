"""The ``dataplane`` command, also as ``python -m dataplane``, from before anything is loaded.

To load all that a command may need takes most of a second, in which nothing has begun that had to
end in order: Ctrl-C then ends the process at once, and says as little as later.
"""

import os
import signal
from types import FrameType
from typing import Any

_INTERRUPTED = 130


def main() -> None:
    """Run the command."""
    with_python = signal.getsignal(signal.SIGINT)
    # What is started in the background ignores it, and so it stays.
    if with_python is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from dataplane.cli import main as command

    try:
        signal.signal(signal.SIGINT, with_python)
        command()
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _end(number: int, frame: FrameType | None) -> Any:
    """Not by an exception: what is being imported might catch it, or call it another one."""
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
