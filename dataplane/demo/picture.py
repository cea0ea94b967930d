"""What a watcher of the log and of progress knows: nodes, chains, transfers, and what was done.

A fold, made again from the log at each run. It decides nothing, and no verdict is taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.agent.progress import ProgressMessage
from dataplane.words import short, size
from streams import events
from streams.codec import Recorded
from streams.events import CHAIN_TRIGGERS, Event


@dataclass
class ChainLine:
    """One chain as it is shown."""

    id: str
    config_key: str
    node: str
    #: Seconds since 1970 by the log's clock, like all times here.
    opened_at: float
    status: str = "waiting for files"
    ended_at: float = 0.0
    games: int = 0

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return not self.ended_at


@dataclass
class TransferLine:
    """One transfer that was assigned and has no result yet."""

    source: str
    target: str
    path: str
    total: int
    attempt: int
    done: int = 0

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return self.done / self.total if self.total else 0.0


@dataclass
class Picture:
    """Everything the demo shows."""

    started_at: float
    chains: dict[str, ChainLine] = field(default_factory=dict)
    transfers: dict[str, TransferLine] = field(default_factory=dict)
    #: How often each node has registered.
    registered: dict[str, int] = field(default_factory=dict)
    #: Games that a node holds, by node and path.
    games: dict[tuple[str, str], int] = field(default_factory=dict)
    copies: int = 0
    bytes_moved: int = 0
    #: What happened, a line each, with seconds since the start.
    journal: list[tuple[float, str]] = field(default_factory=list)

    def note(self, time: float, text: str) -> None:
        """Add a line to the journal."""
        self.journal.append((max(0.0, time - self.started_at), text))

    def apply(self, recorded: Recorded) -> None:
        """Fold one fact."""
        event, time = recorded.event, recorded.time
        if isinstance(event, CHAIN_TRIGGERS):
            self._open(recorded, event)
        elif isinstance(event, events.NodeRegistered):
            name = event.description.name
            self.registered[name] = self.registered.get(name, 0) + 1
            self.note(time, f"{name} has joined" + " again" * (self.registered[name] > 1))
        elif isinstance(event, events.FilesObserved):
            for entry in event.entries:
                self.games[event.node, entry.path] = entry.games or 0
        elif isinstance(event, events.TransferAssigned):
            self._assign(event)
        elif isinstance(event, events.TransferSucceeded | events.TransferFailed):
            self._result(event, time)
        else:
            self._decision(recorded)

    def progress(self, message: ProgressMessage) -> None:
        """Take in how far a transfer is."""
        line = self.transfers.get(message.transfer)
        if line is not None:
            line.done, line.total = message.done, message.total

    def open_chains(self) -> list[ChainLine]:
        """Chains that have not ended, oldest first."""
        return [chain for chain in self.chains.values() if chain.open]

    def moving_to(self, target: str) -> TransferLine | None:
        """A transfer to a node that is under way and far from done."""
        running = (line for line in self.transfers.values() if line.target == target)
        return next((line for line in running if line.share < 0.8), None)

    def games_on(self, node: str) -> int:
        """Games that a node holds, over all its files."""
        return sum(games for (name, _), games in self.games.items() if name == node)

    def _open(self, recorded: Recorded, event: Event) -> None:
        if recorded.chain in self.chains:
            return
        line = ChainLine(recorded.chain, recorded.config_key, recorded.owner, recorded.time)
        self.chains[recorded.chain] = line
        played = getattr(event, "games_count", "?")
        text = f"{recorded.type}: {played} games of {line.config_key} on {line.node}"
        self.note(recorded.time, f"chain {short(line.id)} begins: {text}")

    def _assign(self, event: events.TransferAssigned) -> None:
        entry = event.entry
        self.transfers[event.transfer] = TransferLine(
            event.source, event.target, entry.path, entry.size_bytes, event.attempt
        )

    def _result(self, event: events.TransferSucceeded | events.TransferFailed, time: float) -> None:
        self.transfers.pop(event.transfer, None)
        self.bytes_moved += event.bytes_transferred
        if isinstance(event, events.TransferSucceeded):
            self.copies += 1
            self.games[event.target, event.entry.path] = event.games or 0
        else:
            name = f"{event.entry.path} to {event.target}"
            self.note(time, f"transfer of {name} failed: {event.error_class}: {event.error}")

    def _decision(self, recorded: Recorded) -> None:
        event, chain = recorded.event, self.chains.get(recorded.chain)
        if chain is None:
            return
        if isinstance(event, events.DataSyncStarted):
            chain.status = "moving"
        elif isinstance(event, events.DataSyncCompleted | events.DataSyncFailed):
            failed = isinstance(event, events.DataSyncFailed)
            chain.status = "failed" if failed else "completed"
            chain.ended_at, chain.games = recorded.time, event.games_synced
            took = f"{chain.ended_at - chain.opened_at:.1f} s"
            moved = f"{event.games_synced} games, {size(event.bytes_transferred)} moved"
            self.note(
                recorded.time,
                f"chain {short(chain.id)} {chain.status} after {took}: "
                + (event.reason if failed else moved),
            )
