"""What questions are answered with, whoever asks whatever."""

from __future__ import annotations

from dataplane.config import DataPlaneConfig
from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from dataplane.queries import AskPending, Reading, pending
from projections.transfers import transfer_id
from streams.events import SyncPlanned
from streams.values import SyncPlan, Transport
from tests.spec import T0, decided, games_of, given

GAMES = games_of("gpu-1", version=3)


def test_what_is_no_transfers_id_spoils_no_question_about_others() -> None:
    """An agent asks by names of files, and somebody may have called one whatever he liked."""
    plan = SyncPlan(
        source_node="gpu-1",
        target_nodes=("train-1",),
        entries=(GAMES,),
        transport_preference=(Transport.HTTP_FETCH,),
    )
    story = given(decided("c1", SyncPlanned(config_key="hex8_2p", plans=(plan,))))
    view, id = story.view, transfer_id(GAMES, "train-1")
    planner = SyncPlanner(Policy(), view, T0)
    known = Reading(view, planner, T0, {}, view.checkpoint.sequence, DataPlaneConfig(), None)
    assert pending(AskPending(("", "x" * 600, "a b", id, "over")), known) == [id]
