"""Bars for what a command waits for; they are for people, and go where no table or JSON goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from adapters.transport import Progress as Told
from dataplane.cli import show


def shown(*, transient: bool, disable: bool = False) -> Progress:
    """Bars with how far, how fast and how long yet."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=show.errors if transient else show.console,
        transient=transient,
        disable=disable,
    )


@contextmanager
def bars() -> Iterator[Callable[[str], Told]]:
    """Makes bars by what they are of, each told (bytes done, bytes in all); they go at the end."""
    with shown(transient=True, disable=not show.errors.is_terminal) as drawn:

        def bar(what: str) -> Told:
            task = drawn.add_task(what, total=None)

            def tell(done: int, total: int) -> None:
                drawn.update(task, completed=done, total=total)

            return tell

        yield bar
