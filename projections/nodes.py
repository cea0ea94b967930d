"""Which nodes there are, what they said of themselves, and whether they are in planning."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from projections.store import Reader, Writer
from projections.view import Handler, Row, unpacker
from streams import events
from streams.codec import Recorded
from streams.values import NodeDescription

#: A node that is still there after a day was not about to go.
LEAVING_S = 86_400.0


class NodeRow(Row, frozen=True):
    """A node by its own word and by what others said of it."""

    description: NodeDescription
    #: Seconds since 1970 of its last registration.
    registered_at: float
    #: HOST_OFFLINE takes it out of planning; HOST_ONLINE and NODE_RECOVERED put it back.
    online: bool = True
    reason: str = ""
    #: When `online` last changed.
    since: float = 0.0
    #: Configurations it trains now: started and not completed.
    training: tuple[str, ...] = ()
    #: When bytes last arrived on it; 0.0 if they never did.
    received_at: float = 0.0
    #: When NODE_TERMINATING said that it is to go; 0.0 if nothing did, or it was said that it
    #: stays. That it is there again says nothing of that: its machine goes all the same.
    leaving_at: float = 0.0

    @property
    def name(self) -> str:
        """The node's name."""
        return self.description.name

    def is_leaving(self, now: float) -> bool:
        """Whether it is to go, by a NODE_TERMINATING that is not long past."""
        return bool(self.leaving_at) and now - self.leaving_at < LEAVING_S


_NODE = unpacker(NodeRow)
HostEvent = events.HostOffline | events.HostOnline | events.NodeRecovered
#: What says of a node that was to go that it stays.
Stays = events.NodeDrainCancelled | events.NodeRecovered


class NodesView:
    """Folds registrations, HOST events and who is to go. None changes a node's description.

    What a node trains and when it last received is folded beside it.
    """

    name = "nodes"
    version = 4
    tables = ("nodes",)

    def __init__(self) -> None:
        self.folds: dict[type[events.Event], Handler] = {
            events.NodeRegistered: self._register,
            events.HostOffline: self._set,
            events.HostOnline: self._set,
            events.NodeRecovered: self._set,
            events.NodeTerminating: self._leave,
            events.NodeDrainCancelled: self._stay,
            events.TrainingStarted: self._train,
            events.TrainingCompleted: self._train,
            events.TransferSucceeded: self._receive,
        }

    @staticmethod
    def _register(tx: Writer, event: events.NodeRegistered, recorded: Recorded) -> None:
        name = event.description.name
        before = get_node(tx, name)
        row = NodeRow(event.description, recorded.time, True, "", recorded.time)
        if before is not None and event.changed:
            row = replace(before, description=event.description, registered_at=recorded.time)
        elif before is not None:
            # Its agent may have died and begun again on a machine that is to go all the same.
            row = replace(
                row,
                training=before.training,
                received_at=before.received_at,
                leaving_at=before.leaving_at,
            )
        tx.put("nodes", name.encode(), row)

    @staticmethod
    def _train(
        tx: Writer, event: events.TrainingStarted | events.TrainingCompleted, _: Recorded
    ) -> None:
        row = get_node(tx, event.node)
        if row is None:
            return
        others = tuple(key for key in row.training if key != event.config_key)
        starts = isinstance(event, events.TrainingStarted)
        training = (*others, event.config_key) if starts else others
        tx.put("nodes", event.node.encode(), replace(row, training=training))

    @staticmethod
    def _receive(tx: Writer, event: events.TransferSucceeded, recorded: Recorded) -> None:
        row = get_node(tx, event.target)
        if row is not None and event.bytes_transferred:
            tx.put("nodes", event.target.encode(), replace(row, received_at=recorded.time))

    @staticmethod
    def _set(tx: Writer, event: HostEvent, recorded: Recorded) -> None:
        row = get_node(tx, event.node)
        if row is not None:
            online = not isinstance(event, events.HostOffline)
            changed = replace(row, online=online, reason=event.reason, since=recorded.time)
            if isinstance(event, events.NodeRecovered):
                changed = replace(changed, leaving_at=0.0)
            tx.put("nodes", event.node.encode(), changed)

    @staticmethod
    def _leave(tx: Writer, event: events.NodeTerminating, recorded: Recorded) -> None:
        row = get_node(tx, event.node)
        if row is not None:
            tx.put("nodes", event.node.encode(), replace(row, leaving_at=recorded.time))

    @staticmethod
    def _stay(tx: Writer, event: events.NodeDrainCancelled, recorded: Recorded) -> None:
        row = get_node(tx, event.node)
        if row is not None:
            tx.put("nodes", event.node.encode(), replace(row, leaving_at=0.0))


def get_node(reader: Reader, name: str) -> NodeRow | None:
    """A node by name; None if it never registered."""
    return reader.row("nodes", name.encode(), _NODE)


def all_nodes(reader: Reader) -> Iterator[NodeRow]:
    """All nodes that ever registered, by name."""
    for _, value in reader.scan("nodes"):
        yield _NODE.decode(value)
