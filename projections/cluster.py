"""All views as one reading of the cluster: what the planner decides on and the commands show."""

from __future__ import annotations

from collections.abc import Container, Iterator

from projections import (
    chains,
    deletions,
    guards,
    links,
    nodes,
    queue,
    rejected,
    standing,
    sweeps,
    trainings,
    transfers,
)
from projections.catalog import DataCatalog
from projections.chains import Chain, ChainRow
from projections.deletions import DeletionRow
from projections.fold import Checkpoint, checkpoint
from projections.links import LinkRow
from projections.nodes import NodeRow
from projections.rejected import RejectedRow
from projections.standing import StandingRow
from projections.store import Reader
from projections.sweeps import AlertRow, SweepRow
from projections.trainings import StagedRow, Staging, TrainingRow
from projections.transfers import CopyRow, Totals, TransferRow
from streams.values import DataEntry, DataType, SweepKind, SyncPriority, Transport


class ClusterView:
    """Everything known at one moment. Bound to a reading: use it and let it go."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.catalog = DataCatalog(reader)

    @property
    def checkpoint(self) -> Checkpoint:
        """Up to where the log is folded."""
        return checkpoint(self._reader)

    def nodes(self) -> list[NodeRow]:
        """All nodes that ever registered, by name."""
        return list(nodes.all_nodes(self._reader))

    def node(self, name: str) -> NodeRow | None:
        """A node by name."""
        return nodes.get_node(self._reader, name)

    def links(self) -> list[LinkRow]:
        """How every node could be reached lately: its own row, then one for each transport."""
        return list(links.all_links(self._reader))

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        """How a node could be reached by a transport, or by any; None if it was never tried."""
        return links.get_link(self._reader, node, transport)

    def current(
        self, *, node: str, config_key: str, data_type: DataType, authority_only: bool = True
    ) -> list[DataEntry]:
        """Current entries; with `node`, those it is the authority of, or all that it holds."""
        authority = node if authority_only else ""
        return list(
            self.catalog.current(
                node=node, config_key=config_key, data_type=data_type, authority=authority
            )
        )

    def current_at(self, path: str) -> DataEntry | None:
        """The current version of a path that somebody holds."""
        entry = self.catalog.get(path)
        return entry if entry is not None and entry.locations else None

    def held_by(self, node: str, path: str) -> DataEntry | None:
        """What a node holds under a path."""
        return self.catalog.held_by(node, path)

    def holds(self, node: str, entry: DataEntry) -> bool:
        """Whether a node holds exactly this content under its path."""
        return self.catalog.holds(node, entry)

    def current_of(self, path: str) -> DataEntry | None:
        """The version of a path that counts, with those who hold it."""
        return self.catalog.get(path)

    def was_announced(self, entry: DataEntry) -> bool:
        """Whether exporters were told of this content before."""
        return chains.was_announced(self._reader, entry.path, entry.checksum)

    def chain(self, id: str) -> ChainRow | None:
        """A chain by id."""
        return chains.get_chain(self._reader, id)

    def whole_chain(self, id: str) -> Chain | None:
        """A chain by id with all that was planned for it."""
        return chains.whole_chain(self._reader, id)

    def joined_trace(self, chain: str) -> str:
        """The trace that a chain's trigger was said in where it is not its own; else ""."""
        return chains.joined_trace(self._reader, chain)

    def chain_ids(self, beginning: str) -> Iterator[str]:
        """Ids of chains that begin so."""
        return chains.chain_ids(self._reader, beginning)

    def open_chains(self, after: bytes = b"") -> Iterator[ChainRow]:
        """Chains that have not ended, oldest first."""
        return chains.open_chains(self._reader, after=after)

    def drains(self) -> list[ChainRow]:
        """Chains that have emptied a node of which it is not said yet that it may go."""
        return list(chains.drains(self._reader))

    def ended_chains(self) -> Iterator[ChainRow]:
        """Chains that have ended, newest first."""
        return chains.ended_chains(self._reader)

    def transfer(self, id: str) -> TransferRow | None:
        """A transfer that some chain waits for or that is under way."""
        return transfers.get_transfer(self._reader, id)

    def trigger_of(self, chain: str) -> str:
        """The wire name of a chain's trigger, without reading the chain; "" if it is unknown."""
        return chains.trigger_of(self._reader, chain)

    def waiting_in(self, chain: str) -> Iterator[TransferRow]:
        """What a chain waits for on nodes, then in the bucket: of each the one with most hope."""
        return transfers.waiting_in_chain(self._reader, chain)

    def transfers_of(self, chain: str) -> list[TransferRow]:
        """What an open chain waits for."""
        return transfers.transfers_of_chain(self._reader, chain)

    def pending(self, target: str = "") -> Iterator[TransferRow]:
        """Transfers that wait to be assigned: by priority, then deadline, then age.

        All, or those to a target.
        """
        return transfers.pending(self._reader, target)

    def pending_fairly(self, passed_over: Container[str] = ()) -> Iterator[TransferRow]:
        """The same by priority, each configuration in turn.

        Those to targets in `passed_over` are left out; it may grow meanwhile.
        """
        return transfers.pending_fairly(self._reader, passed_over)

    def pending_by_age(self) -> Iterator[TransferRow]:
        """The same, the oldest first."""
        return transfers.pending_by_age(self._reader)

    def pending_by_priority(self) -> dict[SyncPriority, int]:
        """How many wait of each priority, the most urgent first."""
        return transfers.pending_by_priority(self._reader)

    def served(self, config_key: str, now: float) -> int:
        """Bytes that a configuration was given lately; each hour that passes halves them."""
        return queue.served(self._reader, config_key, now)

    def in_flight(self) -> list[TransferRow]:
        """Transfers that are assigned and have no result yet."""
        return list(transfers.in_flight(self._reader))

    def open_transfers_of(self, node: str, path: str) -> list[TransferRow]:
        """Transfers that bring something under a path to a node, or fetch it from there now."""
        coming = transfers.open_at(self._reader, node, path)
        going = [row for row in self.in_flight() if row.source == node and row.entry.path == path]
        return [*coming, *going]

    def newer_versions(self, transfer: TransferRow) -> list[TransferRow]:
        """Open transfers of later versions of the same path to the same target."""
        return transfers.newer_versions(self._reader, transfer)

    def superseded_at(self, target: str, path: str = "") -> list[TransferRow]:
        """Transfers that a later version on the target has made needless, of one path or of all."""
        return transfers.superseded_at(self._reader, target, path)

    def totals(self) -> Totals:
        """Transfers and bytes since the log began."""
        return transfers.totals(self._reader)

    def last_copies(self) -> dict[str, CopyRow]:
        """The last proven copy of each configuration."""
        return transfers.last_copies(self._reader)

    def last_assigned_sequence(self) -> int:
        """What guards the next assignment."""
        return guards.last_assignment(self._reader)

    def last_sequence_of(self, chain: str) -> int:
        """What guards the next decision for a chain."""
        return guards.last_of_chain(self._reader, chain)

    def rejected(self) -> Iterator[RejectedRow]:
        """Messages that could not be understood, and triggers set aside, newest first."""
        return rejected.all_rejected(self._reader)

    def rejected_at(self, sequence: int) -> RejectedRow | None:
        """What was rejected or set aside at a place of the log; None if nothing was."""
        return rejected.get_rejected(self._reader, sequence)

    def rejections_unsaid(self) -> list[RejectedRow]:
        """Messages of which EVENT_REJECTED is still owed."""
        return list(rejected.unsaid(self._reader))

    def count_rejections_unsaid(self) -> int:
        """How many those are."""
        return rejected.count_unsaid(self._reader)

    def standing(self, after: bytes = b"") -> Iterator[tuple[bytes, StandingRow]]:
        """How the current version of every path stands, by the path's key, behind `after`."""
        return standing.all_standing(self._reader, after=after)

    def entry(self, key: bytes) -> DataEntry | None:
        """An entry by its key."""
        return self.catalog.at(key)

    def last_sweep(self, kind: SweepKind) -> SweepRow | None:
        """The last sweep of a kind that found work."""
        return sweeps.last_sweep(self._reader, kind)

    def last_alert(self, path: str) -> AlertRow | None:
        """What was last said of the copies of a path."""
        return sweeps.last_alert(self._reader, path)

    def repaired_at(self, path_key: bytes) -> float:
        """When a repair of a path was last asked for, within the last hour; 0.0 if never."""
        return sweeps.repaired_at(self._reader, path_key)

    def repairs_since(self, time: float) -> int:
        """How many repairs were asked for since then, within the last hour."""
        return sweeps.repairs_since(self._reader, time)

    def trainings(self) -> list[TrainingRow]:
        """Each node and configuration that was ever trained, by name."""
        return list(trainings.all_trainings(self._reader))

    def staged_copy(self, node: str, path: str) -> StagedRow | None:
        """A copy that was brought ahead of a training and that no start has found yet."""
        return trainings.staged_copy(self._reader, node, path)

    def staging(self, now: float) -> Staging:
        """What bringing data ahead of trainings was worth up to now."""
        return trainings.staging(self._reader, now)

    def deletion(self, id: str) -> DeletionRow | None:
        """A deletion by the id of its request."""
        return deletions.get_deletion(self._reader, id)

    def open_deletions(self) -> Iterator[DeletionRow]:
        """Deletions that have not ended, oldest first."""
        return deletions.open_deletions(self._reader)

    def deletion_of(self, path: str, checksum: str) -> DeletionRow | None:
        """The reserved or granted deletion of some copy of an entry."""
        return deletions.deletion_of(self._reader, path, checksum)

    def counts(self) -> dict[str, int]:
        """Sizes of the views."""
        tables = {
            "chains_open": "chains_open",
            "chains_ended": "chains_ended",
            "transfers_pending": "queue",
            "transfers_in_flight": "flight",
            "rejected": "rejected",
            "nodes": "nodes",
        }
        sizes = {name: self._reader.count(table) for name, table in tables.items()}
        return {**self.catalog.counts(), **sizes}
