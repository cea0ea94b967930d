"""The ``dataplane`` command, also as ``python -m dataplane``, from before anything is loaded.

To load all that a command may need takes most of a second, in which nothing has begun that had to
end in order: Ctrl-C then ends the process at once, and says as little as later.
"""

# Not `signal`, which is this with names, and loads a dozen modules for them.
import _signal  # type: ignore[import-not-found]
import os

_INTERRUPTED = 130


def main() -> None:
    """Run the command."""
    # What is started in the background ignores it, and so it stays.
    ends = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
    if ends:
        _signal.signal(_signal.SIGINT, _end)
    from dataplane.cli import main as command

    try:
        if ends:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        command()
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _end(number: int, frame: object) -> None:
    """Not by an exception: what is being imported might catch it, or call it another one."""
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
