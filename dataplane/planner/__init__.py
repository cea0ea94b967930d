"""What must go where: a pure function of what is known, the policy, the time and the trigger.

It says what is to be moved, what is in place already, and for everything else by which rule, with
its figures, it is not moved. It must never return nothing without a reason. Read in this order:
`known` (the cluster as planning sees it), `entries` (what), `targets` (to whom), `sources` (from
whom), `deciding` (the plan).
"""

from dataplane.planner.deciding import SyncPlanner
from dataplane.planner.entries import CommandRejected
from dataplane.planner.known import Known, PlanningView

__all__ = ["CommandRejected", "Known", "PlanningView", "SyncPlanner"]
