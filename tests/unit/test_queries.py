"""What questions are answered with, whoever asks whatever."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dataplane import queries
from dataplane.config import DataPlaneConfig
from dataplane.planner import SyncPlanner
from dataplane.policy import Policy
from dataplane.queries import (
    AskCatalog,
    AskChains,
    AskMissing,
    AskPending,
    Reading,
    catalog,
    chains,
    missing,
    pending,
)
from projections.transfers import transfer_id
from streams.events import SyncPlanned, TransferAssigned, TransferFailed
from streams.micro import ServiceRefusal
from streams.values import SyncPlan, Transport
from tests.spec import T0, decided, entry, games_of, given, holds, played, player, ran, trainer


def test_what_no_answer_can_hold_is_refused_before_it_is_gathered() -> None:
    """However much there is: reading goes no further than to know that it is too much."""
    read = []
    for count in (10, 40):
        games = [entry(f"games/gpu-1/{n}_hex8_2p.db") for n in range(count)]
        story = given(trainer(), player(), holds("gpu-1", *games))
        view = story.view
        planner = SyncPlanner(Policy(), view, T0)
        known = Reading(view, planner, T0, {}, 1, DataPlaneConfig(), None, most=count)
        assert len(missing(AskMissing("train-1"), known)) == count
        assert len(catalog(AskCatalog(), known)) == count
        known.most = 3
        before = view._reader.steps
        for ask, answer in ((AskMissing("train-1"), missing), (AskCatalog(), catalog)):
            with pytest.raises(ServiceRefusal, match="more than 3 lines") as refusal:
                answer(ask, known)  # type: ignore[operator]
            assert refusal.value.code == "413"
        read.append(view._reader.steps - before)
    assert read[0] == read[1]


def test_chains_of_a_rare_configuration_are_looked_for_among_the_newest_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many there ever were; of any configuration they are the newest anyway."""
    monkeypatch.setattr(queries, "ENDED_LOOKED_AT", 2)
    story = given(trainer(), player(), ran("rare", played(config_key="square8_4p")))
    story.tell(*(ran(f"c{n}", played()) for n in range(2)))
    view = story.view
    planner = SyncPlanner(Policy(), view, T0)
    known = Reading(view, planner, T0, {}, view.checkpoint.sequence, DataPlaneConfig(), None)
    assert chains(AskChains(config_key="square8_4p"), known) == []
    assert [line.chain for line in chains(AskChains(last=5), known)] == ["c1", "c0"]
    assert [line.chain for line in chains(AskChains(last=1), known)] == ["c1"]
    assert chains(AskChains(last=-1), known) == []
    monkeypatch.setattr(queries, "ENDED_LOOKED_AT", 3)
    assert [one.chain for one in chains(AskChains(config_key="square8_4p"), known)] == ["rare"]


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


def test_an_executor_is_told_what_is_still_its_own() -> None:
    """Not what was given to another since, nor what waits; who is behind its order does not say."""
    plan = SyncPlan(
        source_node="gpu-1",
        target_nodes=("train-1",),
        entries=(GAMES,),
        transport_preference=(Transport.HTTP_FETCH,),
    )
    id = transfer_id(GAMES, "train-1")
    order = TransferAssigned(
        transfer=id,
        executor="gpu-1",
        source="gpu-1",
        target="train-1",
        entry=GAMES,
        transports=(Transport.HTTP_FETCH,),
        attempt=1,
        timeout_s=30.0,
    )
    failed = TransferFailed(
        transfer=id,
        node="coordinator",
        source="gpu-1",
        target="train-1",
        entry=GAMES,
        attempt=1,
        error="gpu-1 went offline",
        error_class="Unanswered",
    )
    relayed = replace(order, executor="relay-1", attempt=2)
    said: list[object] = [decided("c1", SyncPlanned(config_key="hex8_2p", plans=(plan,)))]
    for more, whose in (
        (decided("c1", order), ["gpu-1"]),
        (decided("c1", failed), []),
        (decided("c1", relayed), ["relay-1"]),
    ):
        said.append(more)
        view = given(*said).view
        folded = view.checkpoint.sequence
        planner = SyncPlanner(Policy(), view, T0)
        known = Reading(view, planner, T0, {}, folded, DataPlaneConfig(), None)
        for node in ("gpu-1", "relay-1"):
            mine = pending(AskPending((id,), executor=node, sequence=folded), known)
            assert mine == ([id] if node in whose else [])
        with pytest.raises(ServiceRefusal, match="far behind"):
            pending(AskPending((id,), executor="gpu-1", sequence=folded + 1), known)
