"""How much is under way, by node and in all: transfers, and the room they have set aside.

Small files travel together, so several of them share a slot: slots are counted in parts, of which a
small one takes one and any other all of them. It must never let anybody exceed a cap, but for the
one slot more that CRITICAL work finds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from dataplane.policy import Policy
from dataplane.words import size
from projections.nodes import NodeRow
from projections.transfers import TransferRow
from streams.values import S3_NODE, SMALL_BYTES, SyncPriority

#: What a running transfer may hold in memory, whatever the size of its file.
MEMORY_BYTES = 64 << 20


class Wait(msgspec.Struct, frozen=True):
    """Why a transfer does not start now."""

    rule: str
    reason: str
    #: Seconds since 1970 when that ends by itself; 0.0 if nobody knows.
    until: float = 0.0


def parts_of(size_bytes: int, small_per_slot: int) -> int:
    """How many parts of a slot a file takes, of `small_per_slot`."""
    return 1 if size_bytes <= SMALL_BYTES else small_per_slot


class Slots:
    """What is taken, and whether more fits."""

    def __init__(
        self,
        policy: Policy,
        in_flight: Iterable[TransferRow],
        node: Callable[[str], NodeRow | None] = lambda name: None,
    ) -> None:
        self._policy = policy
        self._node = node
        #: Parts of a slot, and of all slots: everything below is counted in parts.
        self.parts = policy.bandwidth.small_per_slot
        self._most_per_node = policy.bandwidth.max_per_node * self.parts
        self._most = policy.bandwidth.max_total * self.parts
        #: What is taken at each node, and in all under "". The bucket has no limit of its own: it
        #: counts for nobody.
        self._taken: Counter[str] = Counter()
        #: Where something waits for a whole slot: the parts that are left there are kept for it.
        self._claimed: set[str] = set()
        self._lesser: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        #: Of them, what only takes what is spare; in all under "".
        self._spare: Counter[str] = Counter()
        self._places: set[tuple[str, str]] = set()
        for row in in_flight:
            self._count(row, row.source)

    def full(self, transfer: TransferRow) -> bool:
        """Whether the target has no slot for it; then it does not stand in others' way."""
        return not self._fits(transfer, transfer.target)

    def free_at(self, target: str) -> int:
        """How many parts more may go to a target, with the slot for CRITICAL work."""
        return max(0, self._most_per_node + self.parts - self._taken[target])

    def used(self, where: str = "") -> int:
        """How many slots are taken at a node, or in all; those begun count whole."""
        return math.ceil(self._taken[where] / self.parts)

    def takes(self, transfer: TransferRow) -> int:
        """How many parts of a slot a transfer takes."""
        return parts_of(transfer.entry.size_bytes, self.parts)

    def none_left(self, *, critical: bool) -> bool:
        """Whether nothing of a class can start any more, wherever it goes."""
        return self._taken[""] >= self._most + critical * self.parts

    def only_critical(self, target: str) -> bool:
        """Whether CRITICAL work has all that is under way in the cluster, or at a busy target."""
        if not self._lesser[""]:
            return True
        return self._taken[target] > 0 and not self._lesser[target]

    def hold(self, transfer: TransferRow) -> Wait | None:
        """Why a transfer can't start as things stand; None if it can, by its source allowing."""
        bandwidth = self._policy.bandwidth
        if (transfer.target, transfer.entry.path) in self._places:
            return Wait("slot", f"{transfer.target} gets another version of this path now")
        if not self._fits(transfer, ""):
            have = self.used()
            return Wait("slot", f"{have} of {bandwidth.max_total} transfers are under way")
        if self.full(transfer):
            have = self.used(transfer.target)
            reason = f"{transfer.target} has {have} of {bandwidth.max_per_node} transfers"
            return Wait("slot", reason)
        if transfer.spare_only and (wait := self._no_spare(transfer, transfer.target)) is not None:
            return wait
        return self.no_room(transfer)

    def take(self, transfer: TransferRow, source: str) -> bool:
        """Count a transfer in if it fits; two versions never move to one place at once."""
        if not self._fits(transfer, source):
            return False
        if self.hold(transfer) is not None:
            return False
        if transfer.spare_only and self._no_spare(transfer, source) is not None:
            return False
        self._count(transfer, source)
        return True

    def claim(self, transfer: TransferRow, source: str = "") -> None:
        """Keep what is left for a transfer that finds no whole slot, or small ones would always be
        in its way.
        """
        if self.takes(transfer) == self.parts:
            places = {"", transfer.target, source}
            self._claimed |= {where for where in places if not self._fits(transfer, where)}

    def _count(self, transfer: TransferRow, source: str) -> None:
        takes = self.takes(transfer)
        self._places.add((transfer.target, transfer.entry.path))
        self._bytes[transfer.target] += self._reserved(transfer)
        nodes = {transfer.target, source} - {S3_NODE}
        # One that goes from a node to itself takes two of its slots: it reads and it writes.
        for name in (transfer.target, source, ""):
            if name != S3_NODE:
                self._taken[name] += takes
        if transfer.spare_only:
            self._spare.update(dict.fromkeys({*nodes, ""}, takes))
        if transfer.priority is not SyncPriority.CRITICAL:
            self._lesser.update({*nodes, ""})

    def _fits(self, transfer: TransferRow, where: str) -> bool:
        takes, critical = self.takes(transfer), transfer.priority is SyncPriority.CRITICAL
        if where in self._claimed and takes < self.parts and not critical:
            return False
        most = self._most_per_node if where else self._most
        return self._taken[where] + takes <= most + critical * self.parts

    def _no_spare(self, transfer: TransferRow, name: str) -> Wait | None:
        """Why what only takes what is spare finds no slot at a node; None if it does.

        The rest of the slots is always left to others, be they in use or not.
        """
        bandwidth, share = self._policy.bandwidth, self._policy.prestage.max_share
        limits = {"": bandwidth.max_total} | (
            {} if name == S3_NODE else {name: bandwidth.max_per_node}
        )
        for where, slots in limits.items():
            most = int(share * slots)
            if self._spare[where] + self.takes(transfer) > most * self.parts:
                have, at = math.ceil(self._spare[where] / self.parts), where or "the cluster"
                return Wait("spare", f"{at} has {have} of {most} transfers that may be spared")
        return None

    def _reserved(self, transfer: TransferRow) -> int:
        """What of the target's disk it takes yet: what failed attempts brought lies there, and of
        a disk that it filled it would ask for the same room twice.
        """
        whole = int(transfer.entry.size_bytes * self._policy.disk.reserve_factor)
        return max(0, whole - sum(failure.moved for failure in transfer.failures))

    def no_room(self, transfer: TransferRow) -> Wait | None:
        """Why a target's disk or memory has no room (K21); None if it has, or nobody knows."""
        row = self._node(transfer.target)
        if row is None:
            return None
        disk = row.description
        if disk.disk_total_bytes:
            used = 1 - disk.disk_free_bytes / disk.disk_total_bytes
            limit = self._policy.disk.stop_background_from
            if transfer.priority is SyncPriority.BACKGROUND and used >= limit:
                reason = f"{row.name}'s disk is {used:.0%} full"
                return Wait("disk-tier", f"{reason}: no background data from {limit:.0%} on")
            left = disk.disk_free_bytes - self._bytes[transfer.target]
            if self._reserved(transfer) > left:
                needs, has = size(self._reserved(transfer)), size(max(0, left))
                return Wait("disk-space", f"{row.name} has {has} left, and it takes {needs}")
        free = disk.memory_free_bytes
        if disk.memory_total_bytes and free is not None:
            needs_bytes = MEMORY_BYTES * (self.used(transfer.target) + 1)
            if free < needs_bytes:
                reason = f"{row.name} has {free >> 20} MiB of memory free"
                return Wait("memory", f"{reason}, {needs_bytes >> 20} MiB are needed")
        return None
