"""What decisions obey: what goes where and why, as data with the cluster's defaults.

Pure data and what can be asked of it; nothing here decides about a cluster, that is the planner's.
One struct for each concern, one ``[policy.<concern>]`` table for each struct. Read in this order:
`limits` (the numbers), then `reading` (tables in, tables out, and what is wrong with them).
"""

from __future__ import annotations

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
from streams.identity import PathRules

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
    "Policy",
    "Prestage",
    "Quality",
    "Replication",
    "Retries",
    "Schedule",
    "Transports",
    "matches_any",
]


class Policy(Concern, frozen=True):
    """What planning, admission, sweeps and chains obey."""

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
