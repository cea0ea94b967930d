"""The cluster as planning sees it: the views, with what the policy says of nodes laid over them.

Whoever asks for a node's roles and traits asks here, so that they mean one thing everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from dataplane.policy import Policy
from dataplane.sealed import stands_alone
from projections.deletions import DeletionRow
from projections.links import BreakerRule, BreakerState, LinkRow, breaker
from projections.nodes import NodeRow
from streams.values import S3_NODE, DataEntry, DataType, NodeDescription, Transport


class PlanningView(Protocol):
    """What a planner must know of the cluster; `projections.cluster.ClusterView` knows it."""

    def nodes(self) -> list[NodeRow]:
        """All nodes that ever registered, by name."""

    def node(self, name: str) -> NodeRow | None:
        """A node by name."""

    def current(
        self, *, node: str, config_key: str, data_type: DataType, authority_only: bool = True
    ) -> list[DataEntry]:
        """Current entries; with `node`, those it is the authority of, or all that it holds."""

    def current_at(self, path: str) -> DataEntry | None:
        """The current version of a path that somebody holds."""

    def held_by(self, node: str, path: str) -> DataEntry | None:
        """What a node holds under a path."""

    def holds(self, node: str, entry: DataEntry) -> bool:
        """Whether a node holds exactly this content under its path."""

    def deletion_of(self, path: str, checksum: str) -> DeletionRow | None:
        """The reserved or granted deletion of some copy of an entry."""

    def was_announced(self, entry: DataEntry) -> bool:
        """Whether exporters were told of this content before."""

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        """How a node could be reached by a transport, or by any."""


#: The bucket as a target among nodes.
_BUCKET = NodeRow(NodeDescription(name=S3_NODE), 0.0)


class Known:
    """One reading of the cluster under one policy."""

    def __init__(self, policy: Policy, view: PlanningView, now: float = 0.0) -> None:
        self.policy = policy
        self.view = view
        self.now = now
        #: By name, so that many entries on few nodes read each node once.
        self._rows: dict[str, NodeRow | None] = {}
        self._all: Sequence[NodeRow] | None = None
        self._links: dict[tuple[str, Transport | None], LinkRow | None] = {}

    def nodes(self) -> Sequence[NodeRow]:
        """All nodes, as the policy has them; read once."""
        if self._all is None:
            self._all = tuple(map(self._as_policy_has_it, self.view.nodes()))
        return self._all

    def node(self, name: str) -> NodeRow | None:
        """A node, or the bucket where there is one, as the policy has it."""
        if name == S3_NODE:
            return _BUCKET if self.policy.s3.enabled else None
        if name not in self._rows:
            row = self.view.node(name) if name else None
            self._rows[name] = None if row is None else self._as_policy_has_it(row)
        return self._rows[name]

    def link(self, node: str, transport: Transport | None = None) -> LinkRow | None:
        """How a node could be reached by a transport, or by any; read once."""
        key = node, transport
        if key not in self._links:
            self._links[key] = self.view.link(node, transport)
        return self._links[key]

    def is_ephemeral(self, row: NodeRow) -> bool:
        """Whether what a node holds may be gone any time."""
        return self.policy.is_ephemeral(row.description)

    def lasting(
        self,
        holders: Sequence[str],
        without: str = "",
        *,
        offline: bool = False,
        sealed_with: str = "",
    ) -> list[str]:
        """Those of `holders` that count as copies (K8): there, to stay, one for each mount.

        Neither ephemeral nodes stay nor those that are to go: of two that hold the last copies and
        are emptied at once, neither may rely on the other.

        `without` is left out, and so is whoever shares its mount. With `offline`, nodes count
        that are only away for now. The bucket's copy counts, where it is `sealed_with` a key, if
        another lasting node has that key than those that count already.
        """
        gone = self.node(without)
        mounts = {gone.description.nfs_group} if gone else set()
        counted = []
        for name in holders:
            row = self.node(name)
            if name == without or row is None:
                continue
            if not self._lasts(row, offline):
                continue
            mount = row.description.nfs_group
            if mount and mount in mounts:
                continue
            mounts.add(mount)
            counted.append(name)
        if sealed_with and S3_NODE in counted:
            keepers = (row for row in self.nodes() if self._lasts(row, offline))
            if not stands_alone(sealed_with, {*counted, without}, keepers):
                counted.remove(S3_NODE)
        return counted

    def _lasts(self, row: NodeRow, offline: bool) -> bool:
        stays = not self.is_ephemeral(row) and not row.is_leaving(self.now)
        return stays and (row.online or offline)

    def circuit_open_until(self, name: str) -> float:
        """Until when a node is not to be asked because it failed too often (K15); 0.0 if it may."""
        breakers = self.policy.breakers
        rule = BreakerRule(
            breakers.node_failures, breakers.node_open_s, breakers.half_open_successes
        )
        state = breaker(self.link(name), self.now, rule)
        return state.until if state.state is BreakerState.OPEN else 0.0

    def _as_policy_has_it(self, row: NodeRow) -> NodeRow:
        description = self.policy.of_node(row.description)
        return row if description is row.description else replace(row, description=description)
