"""Who may say and read what on the bus, by role, as NATS permissions.

What is not listed here is refused by the server, and the refusal reaches the caller with its text.
A role is allowed things, never denied some: what is forgotten here is forbidden.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

from streams.codec import STREAM
from streams.subjects import PROGRESS_SUBJECTS
from streams.topology import (
    ADVISORIES,
    KEYS_BUCKET,
    NODES_BUCKET,
    READERS_OF_A_CLIENT,
    reader_name,
    streams,
)

_API, _KEY_VALUE = "$JS.API", "$KV"
#: What nobody may do to the log, whatever else they may. Coordinators may remove its beginning,
#: where the stream itself does not deny that: a log must be made for it.
_NOBODY = ("STREAM.DELETE", "STREAM.MSG.DELETE", "STREAM.UPDATE", "STREAM.RESTORE")

#: What nodes may ask each other: where a file is, whether it is sound, whether one has told of all
#: it holds, to let one in, to do a part, as fast as is granted, to try an address. To delete
#: something only coordinators ask.
ASKED_BY_NODES = ("locate", "prove", "untold", "receive", "part", "grant", "probe")


class BusRole(enum.StrEnum):
    """What a user of the bus is."""

    #: Decides: says everything, makes streams and consumers, and can't delete the log.
    COORDINATOR = "coordinator"
    #: Says what happens on it and does what it is asked, under its own name alone.
    NODE = "node"
    #: Reads and asks; says nothing.
    OBSERVER = "observer"


def permissions(role: BusRole, name: str, durables: Iterable[str] = ()) -> dict[str, Any]:
    """The ``permissions`` block of a user in nats-server's configuration.

    `durables` are names of consumers that it may make and read, for subscriptions that outlive
    their process. Its clients must be called `name`: their inboxes and readers are named after it.
    """
    if role is BusRole.COORDINATOR:
        return {
            "publish": {"allow": [">"], "deny": [f"{_API}.{word}.{STREAM}" for word in _NOBODY]},
            "subscribe": {"allow": [">"]},
        }
    own = _Own(name)
    if role is BusRole.OBSERVER:
        publish, subscribe = [*own.reads(), *own.asks()], [f"_INBOX_{name}.>", *_HEARD]
        # How far everybody's consumers are: for archives, and for who looks after the bus.
        publish += [f"{_API}.CONSUMER.{word}" for word in (f"NAMES.{STREAM}", f"INFO.{STREAM}.*")]
        publish += [f"{_API}.STREAM.MSG.GET.{ADVISORIES}"]
    else:
        publish = [*own.says(), *own.reads(), *own.works(), *own.asks()]
        subscribe = [f"_INBOX_{name}.>", f"dp.rpc.{name}.>", f"dp.grant.{name}", *_HEARD]
    for durable in durables:
        publish += own.subscribes(durable)
    return {
        "publish": {"allow": publish},
        "subscribe": {"allow": subscribe},
        "allow_responses": {"max": 1, "expires": "1m"},
    }


_HEARD = (PROGRESS_SUBJECTS, "dp.have.>")


class _Own:
    """The subjects of one user that is no coordinator."""

    def __init__(self, name: str) -> None:
        self._name = name

    def says(self) -> list[str]:
        """Facts, the heartbeat, and what nobody keeps."""
        name = self._name
        return [
            f"dp.node.{name}.>",
            f"{_KEY_VALUE}.{NODES_BUCKET}.agent.{name}",
            f"{_API}.STREAM.MSG.GET.KV_{KEYS_BUCKET}",
            PROGRESS_SUBJECTS,
            "dp.have.>",
            *(f"dp.rpc.*.{word}" for word in ASKED_BY_NODES),
        ]

    def reads(self) -> list[str]:
        """The log and who is there, through readers of its own name."""
        found = [f"{_API}.STREAM.NAMES", f"{_API}.STREAM.LIST", f"{_API}.INFO"]
        # Whoever joins looks whether all streams are there and as they should be.
        found += [f"{_API}.STREAM.INFO.{stream['name']}" for stream in streams()]
        # On how many servers everything stands: part of health.
        found.append(f"{_API}.CONSUMER.LIST.{STREAM}")
        found += [f"{_API}.STREAM.MSG.GET.{name}" for name in (STREAM, f"KV_{NODES_BUCKET}")]
        for number in range(READERS_OF_A_CLIENT):
            reader = reader_name(self._name, number)
            found += [f"{_API}.{word}.{STREAM}.{reader}" for word in _READING]
        return found

    def works(self) -> list[str]:
        """Takes its triggers and its tasks from consumers that a coordinator has made."""
        found = []
        for durable in node_durables(self._name):
            found += [
                f"{_API}.CONSUMER.INFO.{STREAM}.{durable}",
                f"{_API}.CONSUMER.MSG.NEXT.{STREAM}.{durable}",
                f"$JS.ACK.{STREAM}.{durable}.>",
            ]
        return found

    def asks(self) -> list[str]:
        """The coordinators' questions and answers."""
        return ["dp.query.>", "$SRV.>"]

    def subscribes(self, durable: str) -> list[str]:
        """Makes a durable consumer and reads it."""
        return [
            f"{_API}.CONSUMER.INFO.{STREAM}.{durable}",
            f"{_API}.CONSUMER.CREATE.{STREAM}.{durable}",
            f"{_API}.CONSUMER.CREATE.{STREAM}.{durable}.>",
            f"{_API}.CONSUMER.MSG.NEXT.{STREAM}.{durable}",
            f"$JS.ACK.{STREAM}.{durable}.>",
        ]


_READING = ("CONSUMER.CREATE", "CONSUMER.MSG.NEXT", "CONSUMER.DELETE")


def node_durables(node: str) -> tuple[str, str]:
    """The consumers from which a node's agent takes triggers and tasks."""
    return f"observe_{node}", f"task_{node}"
