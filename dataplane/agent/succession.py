"""A machine that takes over the name of another one, which was said to go.

That its agent begins anew says nothing of a node that is to go: its machine goes all the same. But
where another machine has come in its place, with nothing on it, the name stays. It is another one
only if it says so of itself in both ways that there are, by its installation and by its boot: a
container that is made anew on a machine that goes has the boot of that machine, and a machine that
boots once more has its installation. Where one of them can't be told, nothing is taken back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from adapters.files.places import OWN_DIRECTORY
from dataplane.turns import said
from projections.nodes import LEAVING_S
from streams import events
from streams.codec import fact_id, node_fact
from streams.log import Log
from streams.subjects import node_filter

logger = logging.getLogger(__name__)
REASON = "another machine has come under this name, with nothing on it"


def began_empty(directory: Path) -> bool:
    """Whether a data directory has nothing of anybody's. Blocks for the disk."""
    return not directory.exists() or all(path.name == OWN_DIRECTORY for path in directory.iterdir())


def is_another(before: events.NodeRegistered, now: events.NodeRegistered) -> bool:
    """Whether another machine joins than the one that joined before, as far as both say."""
    return all(
        was and is_ and was != is_
        for was, is_ in ((before.machine, now.machine), (before.boot, now.boot))
    )


async def take_over(
    log: Log,
    node: str,
    joins: events.NodeRegistered,
    forget: Callable[[], Awaitable[None]],
    clock: Callable[[], float] = time.time,
) -> bool:
    """Say that a node that was to go stays, if it is another machine, which holds nothing, that now
    `joins`; whether it was said.

    Before that `forget` says of what the one before it held that it is not here: from then on what
    the node holds counts. Say only afterwards that it joined. Raises a `LogError`.
    """
    before = await log.last(node_filter(node, events.NodeRegistered))
    if before is None or not isinstance(before.event, events.NodeRegistered):
        return False
    if not is_another(before.event, joins) or not await _is_to_go(log, node, clock()):
        return False
    await forget()
    stays = events.NodeDrainCancelled(node=node, reason=REASON)
    await said(log, node_fact(stays, node, fact_id("succeeded", node, joins.machine, joins.boot)))
    logger.info("%s was to go, and stays: %s", node, REASON)
    return True


async def _is_to_go(log: Log, node: str, now: float) -> bool:
    goes = await log.last(node_filter(node, events.NodeTerminating))
    if goes is None or now - goes.time > LEAVING_S:
        return False
    for kind in (events.NodeDrainCancelled, events.NodeRecovered):
        stays = await log.last(node_filter(node, kind))
        if stays is not None and stays.sequence > goes.sequence:
            return False
    return True
