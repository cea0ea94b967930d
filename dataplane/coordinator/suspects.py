"""Transfers that can't be reckoned with: found one by one, left out, and set aside in the end.

An error in admission is looked into by trying each transfer alone. Whichever raises one is left out
from then on and tried again ever later; the others are assigned meanwhile. When it was tried often
enough, the chains that wait for it end with the reason. It must never blame a transfer for what
goes wrong without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from dataplane.chain import set_aside
from dataplane.coordinator.trouble import Troubles
from dataplane.logs import about_chain
from dataplane.policy import Policy
from projections.cluster import ClusterView
from projections.store import StoreError
from projections.transfers import TransferRow
from streams.codec import Fact
from streams.log import Guard
from streams.subjects import chain_filter

logger = logging.getLogger(__name__)
#: Raises whatever is wrong with a transfer.
Probe = Callable[[TransferRow], None]


class Suspects:
    """What one coordinator can't reckon with. It is kept in memory alone."""

    def __init__(self) -> None:
        #: By transfer.
        self.troubles = Troubles("transfer {} could not be reckoned with")

    def without(
        self, rows: Iterable[TransferRow], probe: Probe, now: float
    ) -> Iterator[TransferRow]:
        """Those of `rows` that nothing is wrong with, as far as is known."""
        for row in rows:
            if row.id not in self.troubles:
                yield row
            elif not self.troubles.must_wait(row.id, now) and self._sound(row, probe, now):
                self.troubles.over(row.id)
                yield row

    def blame(self, rows: Iterable[TransferRow], probe: Probe, now: float) -> bool:
        """Try each of `rows` alone; whether any is to blame that was not blamed before."""
        found = [
            row.id
            for row in rows
            if row.id not in self.troubles and not self._sound(row, probe, now)
        ]
        return bool(found)

    def _sound(self, row: TransferRow, probe: Probe, now: float) -> bool:
        try:
            probe(row)
        except StoreError:
            raise
        except Exception as error:
            self.troubles.failed(row.id, error, now)
            with about_chain(next(iter(row.chains), "")):
                logger.error(
                    "transfer %s of %s is left out", row.id, row.entry.path, exc_info=error
                )
            return False
        return True

    def ends(self, view: ClusterView, policy: Policy, now: float) -> list[tuple[list[Fact], Guard]]:
        """The ends of chains that wait for what was tried often enough; forgets what has gone."""
        found = []
        for id, trouble in self.troubles.items():
            row = view.transfer(id)
            if row is None:
                self.troubles.over(id)
            elif trouble.hopeless:
                for name in row.chains:
                    chain = view.whole_chain(name)
                    if chain is not None:
                        problem = f"transfer of {row.entry.path} to {row.target}: {trouble.problem}"
                        facts = set_aside(chain, trouble.tries, problem, policy, now, "")
                        guard = Guard(chain_filter(name), view.last_sequence_of(name))
                        found.append((facts, guard))
        return found
