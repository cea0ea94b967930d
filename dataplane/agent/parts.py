"""Parts of this node's transfers that other agents carry out, each as fast as the whole may be.

A part never has a rate of its own: it begins with what its whole is granted at that moment, and
whoever carries it out is told what is granted since.
"""

from __future__ import annotations

from dataplane.agent import asking
from dataplane.agent.attempt import Outcome
from dataplane.budget import claim_of_order
from dataplane.coordinator.granting import GrantKeeper
from streams import events
from streams.log import Bus


class Parts:
    """What this node lets others do. Several at once."""

    def __init__(self, bus: Bus, grants: GrantKeeper) -> None:
        self._bus = bus
        self._grants = grants

    async def let_do(
        self, node: str, part: events.TransferAssigned, order: events.TransferAssigned
    ) -> Outcome:
        """Let `node` carry out a part of `order`, and wait for what comes of it.

        Raises `Unreachable` if it does not answer within the part's time.
        """
        claim = claim_of_order(order)
        with self._grants.moved_by(node, claim):
            granted = self._grants.as_granted(part, claim)
            return await asking.do_part(self._bus, node, granted, claim)
