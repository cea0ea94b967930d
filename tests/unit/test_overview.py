"""The cluster at a glance: what is counted, what is shown, and what deserves a look first."""

from __future__ import annotations

import io
from typing import Any

import msgspec
from msgspec.structs import replace
from rich.console import Console

from dataplane.cli.top import draw
from dataplane.evidence import span_of
from dataplane.health import OLD_CHAIN_S, HealthCheckResult
from dataplane.metrics import stages
from dataplane.overview import (
    FAILED_LATELY_S,
    MOST_ALIKE,
    MOST_ROWS,
    Overview,
    Severity,
    overview,
    with_alerts,
)
from streams import events
from streams.values import Endpoint, SyncPlan, SyncPriority, Transport
from tests.spec import (
    Story,
    after,
    decided,
    entry,
    games_of,
    given,
    holds,
    model,
    node,
    opens,
    played,
    player,
    policy_of,
    ran,
    said_what_is_owed,
    trainer,
)

CLUSTER = (trainer(), player())
HEARD = ("coordinator.boss", "agent.train-1", "agent.gpu-1")


def heard(story: Story, *names: str) -> dict[str, dict[str, Any]]:
    """Heartbeats of just now: of all, or of these."""
    return {name: {"time": story.now} for name in names or HEARD}


def seen(story: Story, **changes: Any) -> Overview:
    """What the page shows of a story."""
    given_: dict[str, Any] = {
        "now": story.now,
        "beats": heard(story),
        "last_sequence": len(story.facts),
        "policy": policy_of(replication={"minimum": 2}),
    }
    return overview(story.view, **{**given_, **changes})


def texts(glance: Overview) -> list[str]:
    """The alerts' words."""
    return [alert.text for alert in glance.alerts]


def test_the_map_counts_current_entries_by_configuration_type_and_node() -> None:
    """One row for each configuration and type; a node's cell is what it holds of it."""
    story = given(*CLUSTER, ran("c1", played(), games_of("gpu-1")))
    [row] = seen(story).map
    assert (row.config_key, row.type, row.entries, row.games) == ("hex8_2p", "games", 1, 500)
    assert {name: held.entries for name, held in row.by_node.items()} == {"gpu-1": 1, "train-1": 1}
    assert (row.copies_least, row.under_replicated) == (2, 0)


def test_the_time_of_a_chain_that_nobody_answered_went_into_waiting_for_the_answer() -> None:
    """It never came to a plan or a move, and no part of its time is said to have gone there."""
    story = given(*CLUSTER, opens("c1", played("gpu-9")), after(100), said_what_is_owed)
    [row] = story.view.ended_chains()
    assert [stage for stage, _ in stages(row)] == ["answer"]


def test_why_reads_no_more_of_the_log_than_speaks_of_what_is_held() -> None:
    """From the fact that brought the oldest version somebody holds; of a model all is read."""
    story = given(*CLUSTER, ran("c1", played(), games_of("gpu-1")), ran("c2", played(), model()))
    [seen] = [f for f in story.facts if f.type == "FILES_OBSERVED" and f.chain == "c1"]
    catalog = story.view.catalog
    assert span_of(catalog, games_of("gpu-1").path) == ("hex8_2p", seen.sequence - 1)
    assert span_of(catalog, model().path).after == 0
    assert span_of(catalog, "games/gpu-1/square8_2p.db") == ("square8_2p", 0)


def test_a_chain_that_waits_for_a_node_that_never_joined_is_an_alert_at_once() -> None:
    """Nobody waits a minute to hear that a name was mistyped."""
    story = given(*CLUSTER, opens("c1", played("gpu-9")))
    assert "SELFPLAY_COMPLETE of hex8_2p waits for gpu-9, which never joined" in texts(seen(story))
    story = given(*CLUSTER, opens("c1", played("gpu-1")))
    assert not [text for text in texts(seen(story)) if "never joined" in text]


def test_all_is_well_says_nothing() -> None:
    """No alert where a chain has ended and every copy is there."""
    glance = seen(given(*CLUSTER, ran("c1", played(), games_of("gpu-1"))))
    assert glance.status == "healthy"
    assert glance.alerts == ()


def test_entries_with_too_few_copies_are_an_alert_with_their_bytes() -> None:
    """What only its producer holds is under-replicated, by bytes too."""
    entry = games_of("gpu-1")
    glance = seen(given(*CLUSTER, holds("gpu-1", entry)))
    assert texts(glance) == ["1 entry has fewer than 2 copies"]
    assert glance.totals.under_replicated_bytes == entry.size_bytes


def test_critical_alerts_stand_first() -> None:
    """Whatever else is wrong: a full disk is said before a node that was taken out."""
    story = given(
        trainer(),
        node("gpu-1", disk_total_bytes=100, disk_free_bytes=6),
        events.HostOffline(node="train-1", reason="spot is gone"),
    )
    assert texts(seen(story)) == [
        "the disk of gpu-1 is 94% full",
        "train-1 is out of planning: spot is gone",
    ]


def test_a_chain_that_failed_lately_leads_to_its_facts() -> None:
    """Its alert names it; after a while it is history."""
    story = given(*CLUSTER, opens("c1", played()), after(120.0), said_what_is_owed)
    [alert] = [a for a in seen(story).alerts if "failed" in a.text]
    assert alert.facts == {"chain": "c1"}
    later = seen(story, now=story.now + FAILED_LATELY_S + 1)
    assert not [a for a in later.alerts if "failed" in a.text]


def test_a_full_disk_is_critical() -> None:
    """K21: from 93 % on."""
    full = node("gpu-1", disk_total_bytes=100, disk_free_bytes=6)
    [alert] = seen(given(full)).alerts
    assert (alert.severity, alert.text) == (Severity.CRITICAL, "the disk of gpu-1 is 94% full")


def test_k21_alerts_of_disks_follow_the_policys_tiers() -> None:
    """K21: what is full is the policy's to say."""
    story = given(node("gpu-1", disk_total_bytes=100, disk_free_bytes=6))
    lax = policy_of(disk={"cleanup_from": 0.95, "stop_production_from": 0.96})
    assert texts(seen(story, policy=lax)) == []
    lax = policy_of(disk={"stop_production_from": 0.95})
    assert [alert.severity for alert in seen(story, policy=lax).alerts] == [Severity.WARNING]


def test_a_silent_node_is_an_alert_now_and_not_in_the_past() -> None:
    """A look at the past has no heartbeats."""
    story = given(*CLUSTER)
    silent = heard(story, "coordinator.boss", "agent.train-1")
    assert texts(seen(story, beats=silent)) == ["no heartbeat from gpu-1"]
    assert texts(seen(story, beats=None)) == []


def test_what_is_of_no_configuration_is_named_by_its_node() -> None:
    """NODE_TERMINATING of all would say that the whole cluster goes."""
    trigger = events.NodeTerminating(node="gpu-1")
    story = given(*CLUSTER, opens("c1", trigger), after(120.0), said_what_is_owed)
    [text] = [text for text in texts(seen(story)) if "failed" in text]
    assert text.startswith("NODE_TERMINATING of gpu-1 failed: ")


def test_a_long_reason_cuts_no_other_column_of_top() -> None:
    """What identifies a chain can be read, however much there is to say of it."""
    story = given(*CLUSTER, opens("c1", played()), after(120.0), said_what_is_owed)
    glance = seen(story)
    [line] = glance.chains
    glance = msgspec.structs.replace(
        glance, chains=(msgspec.structs.replace(line, chain="DATAPLANE-46", reason="why " * 100),)
    )
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(draw(glance, None, 5))
    [row] = [text for text in console.export_text().splitlines() if "why why" in text]
    assert row.split()[:5] == ["DATAPLANE-46", "SELFPLAY_COMPLETE", "hex8_2p", "gpu-1", "failed"]


def test_a_healthy_verdict_says_how_many_alerts_stand_on_the_page() -> None:
    """They make it no worse, and are no surprise: who asks by command is told of them, too."""
    story = given(
        trainer("train-1"), trainer("train-2"), player(), holds("gpu-1", games_of("gpu-1"))
    )
    seen = overview(story.view, now=story.now, beats=None, last_sequence=5, policy=story.policy)
    well = HealthCheckResult(True, "healthy", "all well", {"lag": 0})
    told = with_alerts(well, seen)
    assert (told.healthy, told.message) == (True, "all well, but 1 alert to look at")
    assert told.details == {"lag": 0, "alerts": ["1 entry has fewer than 3 copies"]}
    nothing = msgspec.structs.replace(seen, alerts=())
    assert with_alerts(well, nothing).message == "all well"
    ill = HealthCheckResult(False, "degraded", "views are behind", {})
    assert with_alerts(ill, seen).message == "views are behind"


def test_the_overview_reads_no_transfer_to_know_how_many_wait() -> None:
    """It shows the first ones; of the others only the queues are counted, also behind all else."""
    spare = SyncPlan(
        source_node="gpu-1",
        target_nodes=("train-1",),
        entries=tuple(entry(f"games/gpu-1/{n}_hex8_4p.db") for n in range(3)),
        priority=SyncPriority.HIGH,
        transport_preference=(Transport.HTTP_FETCH,),
        spare_only=True,
    )
    many = replace(
        spare,
        entries=tuple(entry(f"games/gpu-1/{n}_hex8_2p.db") for n in range(3 * MOST_ROWS)),
        spare_only=False,
    )
    story = given(*CLUSTER)
    read = []
    for chain, plan in (("c1", spare), ("c2", many)):
        story.tell(decided(chain, events.SyncPlanned(config_key="hex8_2p", plans=(plan,))))
        view = story.view
        before = view._reader.steps
        glance = seen(story)
        read.append(view._reader.steps - before)
    assert glance.queue == {"high": 3 + 3 * MOST_ROWS}
    assert glance.totals.transfers_pending == 3 + 3 * MOST_ROWS
    assert read[1] - read[0] <= MOST_ROWS


def test_a_cluster_that_is_half_changed_over_to_tls_is_told() -> None:
    """With the nodes that are still without it; one way or the other is nobody's business."""
    secure = Endpoint(node="gpu-1", http_url="https://gpu-1:8770")
    half = given(trainer(), player("gpu-1"), player("gpu-2"))
    assert not any("TLS" in text for text in texts(seen(half)))
    [row] = [row for row in half.view.nodes() if row.name == "gpu-1"]
    half.tell(events.NodeRegistered(replace(row.description, endpoint=secure), changed=True))
    assert "some nodes serve files by TLS, and without it gpu-2, train-1" in texts(seen(half))
    for row in half.view.nodes():
        if row.name != "gpu-1":
            own = Endpoint(node=row.name, http_url="http://127.0.0.1:8770")
            told = events.NodeRegistered(replace(row.description, endpoint=own), changed=True)
            half.tell(told)
    assert not any("TLS" in text for text in texts(seen(half)))


def test_a_clock_that_is_an_hour_off_is_told_with_its_node() -> None:
    """It is heard all the same: how long ago is counted by the bus, not by that clock."""
    story = given(*CLUSTER)
    beats = {
        "coordinator.boss": {"time": story.now},
        "agent.train-1": {"time": story.now - 3600},
        "agent.gpu-1": {"time": story.now + 3600},
    }
    glance = seen(story, beats=beats)
    found = texts(glance)
    assert "the clock of train-1 is 1 h behind the one here; set it right" in found
    assert "the clock of gpu-1 is 1 h ahead of the one here; set it right" in found
    assert [node.seen_s_ago for node in glance.nodes] == [0.0, 0.0]
    late = {name: {"time": story.now - 40} for name in beats}
    assert not any("clock" in text for text in texts(seen(story, beats=late)))


def test_many_alike_alerts_do_not_hide_the_others() -> None:
    """The oldest are said one by one, and how many more there are."""
    chains = [opens(f"c{n}", played()) for n in range(MOST_ALIKE + 5)]
    story = given(*CLUSTER, *chains, after(OLD_CHAIN_S + 1))
    found = texts(seen(story))
    assert len([text for text in found if "has been waiting for files" in text]) == MOST_ALIKE
    assert "5 more chains have been open for more than 15 min" in found
