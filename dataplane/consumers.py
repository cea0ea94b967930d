"""The durable consumers of a node, as data: its agent reads them, and a coordinator makes them.

On a bus with permissions an agent may not make its own: who may make one may change another's.
"""

from __future__ import annotations

from typing import NamedTuple

from dataplane.agent.deliveries import ACK_WAIT_S
from streams import events
from streams.events import FILE_TRIGGERS
from streams.log import Deliveries, Log
from streams.permissions import node_durables
from streams.subjects import Place

#: As many small files as all slots of a node hold, and what is not small beside them.
MAX_TASKS = 1024
MAX_TRIGGERS = 64


class Durable(NamedTuple):
    """One durable consumer."""

    name: str
    subjects: tuple[str, ...]
    max_pending: int

    async def open(self, log: Log) -> Deliveries:
        """Join it, once a coordinator has made it."""
        return await log.join(
            self.name, self.subjects, ack_wait_s=ACK_WAIT_S, max_pending=self.max_pending
        )

    async def provide(self, log: Log) -> None:
        """Make it where it is not there."""
        await log.provide(
            self.name, self.subjects, ack_wait_s=ACK_WAIT_S, max_pending=self.max_pending
        )


def triggers_of(node: str) -> Durable:
    """What asks a node which files it holds."""
    subjects = tuple(f"dp.{Place.NODE}.{node}.{events.type_name(cls)}.>" for cls in FILE_TRIGGERS)
    return Durable(node_durables(node)[0], subjects, MAX_TRIGGERS)


def tasks_of(node: str) -> Durable:
    """What a node is asked to do."""
    return Durable(node_durables(node)[1], (f"dp.{Place.TASK}.{node}.>",), MAX_TASKS)
