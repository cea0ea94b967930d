"""What decisions obey: what goes where and why, as data with the cluster's defaults.

Pure data and what can be asked of it; nothing here decides about a cluster, that is the planner's.
One struct for each concern, one ``[policy.<concern>]`` table for each struct. Read in this order:
`placement` (the routing table), `limits` (the numbers), `reading` (tables in, tables out, and what
is wrong with them), `telling` (the table in words).
"""

from __future__ import annotations

import msgspec

from dataplane.policy.limits import (
    GIGABYTE,
    MEGABYTE,
    S3,
    Bandwidth,
    Breakers,
    Chains,
    Concern,
    Disk,
    Exclusion,
    Prestage,
    Quality,
    Replication,
    Retries,
    Schedule,
    Transports,
    matches_any,
)
from dataplane.policy.placement import (
    NodeRule,
    Order,
    Placement,
    Rule,
    Source,
    Strategy,
    selects,
)
from streams.identity import PathRules
from streams.values import NodeDescription, Trait

__all__ = [
    "GIGABYTE",
    "MEGABYTE",
    "S3",
    "Bandwidth",
    "Breakers",
    "Chains",
    "Concern",
    "Disk",
    "Exclusion",
    "NodeRule",
    "Order",
    "Placement",
    "Policy",
    "Prestage",
    "Quality",
    "Replication",
    "Retries",
    "Rule",
    "Schedule",
    "Source",
    "Strategy",
    "Transports",
    "matches_any",
    "selects",
]


class Policy(Concern, frozen=True):
    """What planning, admission, sweeps and chains obey."""

    #: By name or glob, what nodes are whatever they say themselves; the last match counts.
    nodes: dict[str, NodeRule] = msgspec.field(default_factory=dict)
    placement: Placement = Placement()
    paths: PathRules = PathRules()
    exclusion: Exclusion = Exclusion()
    replication: Replication = Replication()
    bandwidth: Bandwidth = Bandwidth()
    disk: Disk = Disk()
    quality: Quality = Quality()
    schedule: Schedule = Schedule()
    prestage: Prestage = Prestage()
    s3: S3 = S3()
    retries: Retries = Retries()
    breakers: Breakers = Breakers()
    transports: Transports = Transports()
    chains: Chains = Chains()

    def of_node(self, description: NodeDescription) -> NodeDescription:
        """What a node counts as: its own word, and over it what the policy says of its name."""
        said: dict[str, object] = {}
        for glob, rule in self.nodes.items():
            if matches_any(description.name, (glob,)):
                named = msgspec.structs.asdict(rule)
                said |= {field: value for field, value in named.items() if value is not None}
        return msgspec.structs.replace(description, **said) if said else description

    def is_ephemeral(self, description: NodeDescription) -> bool:
        """Whether what a node holds may be gone any time: the one definition there is."""
        return Trait.EPHEMERAL in self.of_node(description).traits
