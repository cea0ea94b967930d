"""What a server that answers may be believed."""

from __future__ import annotations

import pytest

from streams.quorum import speaks_for

SECOND = 1_000_000_000


def replica(active_s: float, *, current: bool = True) -> dict[str, object]:
    """Another server, heard so long ago; 0 is not yet."""
    return {"name": "nats-2", "current": current, "active": round(active_s * SECOND)}


@pytest.mark.parametrize(
    ("cluster", "holds"),
    [
        (None, True),
        ({"leader": "nats-1"}, True),
        ({"leader": "nats-1", "replicas": [replica(0.4), replica(1.2)]}, True),
        ({"leader": "nats-1", "replicas": [replica(0.4), replica(0)]}, True),
        ({"leader": "nats-1", "replicas": [replica(2.9), replica(60, current=False)]}, True),
        ({"leader": "nats-1", "replicas": [replica(3.5), replica(3.5)]}, False),
        ({"leader": "nats-1", "replicas": [replica(0), replica(0)]}, False),
        ({"leader": "nats-1", "replicas": [{"name": "nats-2", "current": True}] * 2}, False),
        ({"replicas": [replica(0.1), replica(0.1), replica(0.1)]}, False),
        ({"leader": "nats-1", "replicas": [replica(1), replica(1), replica(9), replica(9)]}, True),
        ({"leader": "nats-1", "replicas": [replica(1), replica(9), replica(9), replica(9)]}, False),
    ],
)
def test_leader_is_believed_while_most_servers_have_told_it_that_they_are_there(
    cluster: dict[str, object] | None, holds: bool
) -> None:
    """One server alone needs nobody; who has no leader to name knows nothing."""
    assert speaks_for({} if cluster is None else {"cluster": cluster}) is holds
