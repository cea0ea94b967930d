"""What a chain says besides its beginning and its end, where its trigger asks for it.

Pure, and asked by `owed` in `chain`: each is said at most once, and nothing here ends a chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.planner.deciding import CONFLICTS
from dataplane.policy import Policy
from projections.chains import Chain
from streams import events
from streams.codec import Fact, chain_fact
from streams.values import S3_NODE, TargetOutcome

#: Rules that say that data which was asked for is not there.
LACKING = ("nothing-held", "too-few-samples")
#: Of each kind, as many facts are said in one decision: all must fit into one append.
MOST_SAID = 100


def said_of_the_plan(chain: Chain, cause: str) -> list[Fact]:
    """What is to be said at once of a decision: who must play, and which contents conflict."""
    return [*_selfplay_needed(chain, cause), *_conflicts(chain, cause)]


def distributed(
    chain: Chain, arrived: Sequence[TargetOutcome], policy: Policy, cause: str
) -> list[Fact]:
    """MODEL_DISTRIBUTION_COMPLETE, once a model is on the quorum of its targets, or on all."""
    event = chain.event()
    quorum = max((rule.quorum for _, rule in policy.placement.rules_on(chain.trigger)), default=0)
    if not isinstance(event, events.ModelPromoted) or chain.distributed_at or not quorum:
        return []
    there = [(one.target, one.checksum) for one in arrived if one.target != S3_NODE]
    there += [(one.target, one.checksum) for one in chain.held if one.target != S3_NODE]
    wanted = {need.target for need in chain.needs} | {held.target for held in chain.held}
    wanted.discard(S3_NODE)
    if not there or len(there) < min(quorum, len(wanted)):
        return []
    complete = events.ModelDistributionComplete(
        config_key=chain.config_key,
        model_path=event.model_path,
        checksum=there[0][1],
        targets=tuple(sorted({target for target, _ in there})),
    )
    return [chain_fact(complete, chain.id, cause)]


def may_end_empty(chain: Chain) -> bool:
    """Whether a chain that moved nothing and found nothing in place has done what it owed.

    A node that holds nothing can go; everybody else asked for something that is not there.
    """
    only_empty = all(refusal.rule == "nothing-held" for refusal in chain.refusals)
    return isinstance(chain.event(), events.NodeTerminating) and only_empty


def of_no_use(chain: Chain, policy: Policy, now: float) -> str:
    """Why what a chain still waits for is of no use any more; "" if it is.

    Data that is brought ahead of a training is of none once that has stayed away, nor is what was
    to leave a node that stays after all.
    """
    if chain.cancelled_at:
        return f"{chain.node} stays after all"
    event = chain.event()
    if not isinstance(event, events.TrainingExpected):
        return ""
    late = now >= min(event.until, chain.opened_at + policy.chains.limit_s)
    return "it was not there when it would have been of use" if late else ""


def _selfplay_needed(chain: Chain, cause: str) -> list[Fact]:
    """Data was asked for that nobody has, or not enough of: somebody must play it."""
    event = chain.event()
    lacking = any(refusal.rule in LACKING for refusal in chain.refusals)
    if not isinstance(event, events.DataNeeded) or not lacking:
        return []
    needed = events.SelfplayNeeded(
        config_key=event.config_key,
        node=event.node,
        data_type=event.data_type,
        min_samples=event.min_samples,
    )
    return [chain_fact(needed, chain.id, cause)]


def _conflicts(chain: Chain, cause: str) -> list[Fact]:
    """FILE_CONFLICT of each target that keeps a content of its own."""
    found = [refusal for refusal in chain.refusals if refusal.rule in CONFLICTS]
    return [
        chain_fact(
            events.FileConflict(
                node=refusal.target,
                path=refusal.path,
                checksum=refusal.checksum,
                reason=refusal.reason,
            ),
            chain.id,
            cause,
            refusal.target,
            refusal.path,
        )
        for refusal in found[:MOST_SAID]
    ]
