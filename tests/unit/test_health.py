"""Health: progress is healthy, mere existence is not, and degraded is not healthy (P18)."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.clocks import NAMED_S, ClockWatch
from dataplane.health import (
    FAILING_S,
    LAG_LIMIT,
    OLD_CHAIN_S,
    QUIET_S,
    STALL_LIMIT_S,
    CoordinatorHealth,
    HealthCheckResult,
    cluster_health,
    coordinator_health,
)
from dataplane.policy import Policy
from streams import events
from streams.log import ConsumerState, Standing
from streams.values import SweepKind
from tests.spec import (
    Said,
    Story,
    after,
    answers,
    decided,
    games_of,
    given,
    opens,
    played,
    player,
    policy_of,
    ran,
    raw,
    said_what_is_owed,
    trainer,
)

ALL_THERE: dict[str, dict[str, Any]] = {
    "coordinator.boss": {},
    "agent.train-1": {},
    "agent.gpu-1": {},
}
CLUSTER = (trainer(), player())
BAD = raw("dp.node.gpu-1.SELFPLAY_COMPLETE.hex8_2p", b"[]")


def coordinator(story: Story, *, behind: int = 0, stalled_s: float = 0.0) -> CoordinatorHealth:
    """A coordinator's verdict on itself."""
    return coordinator_health(
        story.view,
        last_sequence=len(story.facts) + behind,
        now=story.now,
        stalled_s=stalled_s,
        policy=story.policy,
    )


def cluster(story: Story, **changes: Any) -> HealthCheckResult:
    """The verdict on the whole."""
    given_: dict[str, Any] = {
        "now": story.now,
        "last_sequence": len(story.facts),
        "present": ALL_THERE,
        "policy": story.policy,
    }
    return cluster_health(story.view, **{**given_, **changes})


def test_coordinator_that_keeps_up_is_healthy() -> None:
    """No lag, no old chain, loops that turn."""
    health = coordinator(given(*CLUSTER, opens("c1", played())))
    assert health == CoordinatorHealth("healthy", "all well", 0, ())


@pytest.mark.parametrize(
    ("behind", "stalled_s", "text"),
    [
        (LAG_LIMIT + 1, 0.0, "views are 1001 facts behind the log"),
        (0, STALL_LIMIT_S + 1, "nothing was dispatched for 31 s"),
    ],
)
def test_p18_coordinator_that_exists_and_does_nothing_is_degraded(
    behind: int, stalled_s: float, text: str
) -> None:
    """Judged by progress: views that fall behind, a loop that stands still."""
    health = coordinator(given(*CLUSTER), behind=behind, stalled_s=stalled_s)
    assert (health.status, health.message, health.lag) == ("degraded", text, behind)


def test_coordinator_at_its_limits_is_still_healthy() -> None:
    """A short delay is no alarm."""
    health = coordinator(given(*CLUSTER), behind=LAG_LIMIT, stalled_s=STALL_LIMIT_S)
    assert health.status == "healthy"


def test_view_ahead_of_a_log_has_no_negative_lag() -> None:
    """The log's end was asked before the view went on."""
    assert coordinator(given(*CLUSTER), behind=-1).lag == 0


def test_p18_chain_that_stands_still_degrades_the_whole() -> None:
    """Five days without sync must not look well: the chain, its status and its age are named."""
    story = given(*CLUSTER, opens("c1", played()), after(OLD_CHAIN_S))
    assert cluster(story).healthy
    result = cluster(story.tell(after(1)))
    assert (result.status, result.healthy) == ("degraded", False)
    assert "chain c1 has been waiting for files for 901 s" in result.message
    assert coordinator(story).status == "degraded"


def test_chain_that_has_ended_is_no_old_chain() -> None:
    """However long ago."""
    story = given(*CLUSTER, ran("c1", played(), games_of("gpu-1")), after(100_000))
    assert cluster(story).healthy


def failing(*chains: str) -> list[Any]:
    """Chains that nobody answers, and that end for it."""
    opened = [opens(name, played(games=n)) for n, name in enumerate(chains, 1)]
    return [*opened, after(120.0), said_what_is_owed]


def test_p18_chains_that_fail_one_after_another_degrade_the_whole() -> None:
    """That each of them ends is no progress. It says how many, of what, and why the last one."""
    few = given(*CLUSTER, *failing("c1", "c2"))
    assert cluster(few).healthy
    story = few.tell(*failing("c3"))
    result = cluster(story)
    assert (result.status, result.details["reasons"]) == ("degraded", ["chains-failing"])
    assert result.message == (
        "3 of the last 3 chains failed within 15 min: SELFPLAY_COMPLETE of hex8_2p: "
        "gpu-1 gave no answer within 60 s"
    )
    assert coordinator(story).status == "healthy", "it is not the coordinator that is unwell"
    assert not cluster(story, now=story.now + FAILING_S - 200).healthy
    assert cluster(story, now=story.now + FAILING_S).healthy


def test_a_few_chains_that_fail_among_many_do_not_degrade_the_whole() -> None:
    """Each of them is an alert."""
    story = given(*CLUSTER, *failing("c1", "c2", "c3"))
    for number in range(13):
        assert not cluster(story).healthy
        games = games_of("gpu-1", games=number + 1)
        story.tell(ran(f"good-{number}", played(games=number + 50), games))
    assert cluster(story).healthy


def test_message_nobody_has_reported_yet_degrades() -> None:
    """P14: what is not understood is counted until it is said."""
    story = given(*CLUSTER, BAD)
    assert "1 message could not be understood, not yet reported" in cluster(story).message
    said = events.EventRejected(sequence=3, subject="s", reason="r")
    assert cluster(story.tell(decided("rejected-3", said))).healthy


def test_bus_out_of_reach_is_unhealthy() -> None:
    """Views can still be read; they say nothing of now."""
    result = cluster(given(*CLUSTER), last_sequence=None, present=None)
    assert (result.status, result.healthy) == ("unhealthy", False)
    assert result.message == "the bus can't be reached"
    assert result.details["catalog"]["lag"] is None


def test_no_coordinator_is_unhealthy() -> None:
    """Nobody would decide anything."""
    result = cluster(given(*CLUSTER), present={"agent.train-1": {}, "agent.gpu-1": {}})
    assert (result.status, result.message) == ("unhealthy", "no coordinator is there")


def test_agent_without_a_heartbeat_degrades_and_is_named() -> None:
    """It is registered and online, and is not heard of."""
    result = cluster(given(*CLUSTER), present={"coordinator.boss": {}, "agent.gpu-1": {}})
    assert (result.status, result.message) == ("degraded", "no heartbeat from train-1")


def test_node_that_is_said_to_be_offline_is_not_missed() -> None:
    """Somebody knows of it already."""
    story = given(*CLUSTER, events.HostOffline(node="train-1"))
    assert cluster(story, present={"coordinator.boss": {}, "agent.gpu-1": {}}).healthy


def test_worst_problem_gives_the_status_and_all_are_named() -> None:
    """An operator sees everything at once, the worst first."""
    story = given(*CLUSTER, opens("c1", played()), after(10_000))
    result = cluster(story, last_sequence=None, present={})
    assert result.status == "unhealthy"
    assert result.message.split("; ")[:2] == ["the bus can't be reached", "no coordinator is there"]
    assert "chain c1" in result.message
    assert "no heartbeat from gpu-1, train-1" in result.message


def test_details_count_what_there_is() -> None:
    """The figures behind the verdict, under the names of the reference."""
    story = given(*CLUSTER, ran("c1", played(), games_of("gpu-1")), BAD)
    story.tell(opens("c2", played()), answers("c2", "gpu-1", games_of("gpu-1", "second")))
    story.tell(said_what_is_owed)
    details = cluster(story).details
    assert details["planner"] == {"open_chains": 1, "ended": 1}
    assert details["transport"] == {"pending": 1, "in_flight": 0}
    assert details["event_bridge"] == {"rejected": 1, "coordinators": ["coordinator.boss"]}
    assert (details["pending_syncs"], details["total_syncs"], details["total_bytes"]) == (
        1,
        1,
        1_000,
    )
    assert details["catalog"] == {
        "paths": 1,
        "entries": 2,
        "replicas": 2,
        "sequence": len(story.facts),
        "lag": 0,
    }


def test_nobody_who_leads_is_named() -> None:
    """Coordinators are there, and all stand by."""
    there = {**ALL_THERE, "coordinator.boss": {"leads": False}}
    result = cluster(given(*CLUSTER), present=there)
    assert (result.status, result.details["reasons"]) == ("degraded", ["no-leader"])
    led = {**ALL_THERE, "coordinator.boss": {"leads": True, "lag": 3}}
    result = cluster(given(*CLUSTER), present=led)
    assert result.healthy
    assert (result.details["leader"], result.details["views"]) == (
        "coordinator.boss",
        {"coordinator.boss": 3},
    )


def test_of_two_that_said_that_they_lead_the_later_term_does() -> None:
    """One that was killed is remembered for half a minute, long after another has taken over."""
    there = {
        **ALL_THERE,
        "coordinator.a": {"leads": True, "term": 3},
        "coordinator.boss": {"leads": True, "term": 4},
        "coordinator.c": {"leads": False, "term": 2},
    }
    assert cluster(given(*CLUSTER), present=there).details["leader"] == "coordinator.boss"


def test_chains_that_could_not_be_decided_are_counted() -> None:
    """By the coordinator that tried, until they are decided or set aside."""
    why = "chain c1 could not be decided 3 times: KeyError: 'rows'"
    there = {
        **ALL_THERE,
        "coordinator.boss": {"leads": True, "set_back": 2, "undecided": [why]},
    }
    result = cluster(given(*CLUSTER), present=there)
    text = "2 chains could not be decided by coordinator.boss, which tries again"
    assert result.message == f"{text}: {why}"


@pytest.mark.parametrize("leads", [True, False])
def test_p18_what_only_a_coordinator_knows_to_be_wrong_degrades_the_whole(leads: bool) -> None:
    """A clock that jumped, a log that was rolled back: no view tells of them."""
    boss = {"leads": True}
    other = {"leads": leads, "troubles": ["this machine's clock jumped 60 s ahead"]}
    there = {**ALL_THERE, "coordinator.boss": boss, "coordinator.b": other}
    result = cluster(given(*CLUSTER), present=there)
    assert not result.healthy
    assert result.message == "coordinator.b: this machine's clock jumped 60 s ahead"


def test_views_of_another_log_are_never_healthy() -> None:
    """Whatever they say, they say it of something else."""
    result = cluster(given(*CLUSTER), not_ours="the views here are of another log")
    assert (result.status, result.message) == ("unhealthy", "the views here are of another log")
    assert result.details["reasons"] == ["other-views"]


def test_full_disk_degrades_and_its_tier_is_shown() -> None:
    """K21: what is free is in the heartbeats."""
    story = given(trainer(disk_total_bytes=1_000, disk_free_bytes=50), player())
    there = {**ALL_THERE, "agent.train-1": {"disk_free_bytes": 50}}
    result = cluster(story, present=there)
    assert (result.status, result.details["reasons"]) == ("degraded", ["disk-full"])
    assert result.details["disks"]["train-1"]["tier"] == "stop production"
    half = {**ALL_THERE, "agent.train-1": {"disk_free_bytes": 500}}
    assert cluster(story, present=half).details["disks"]["train-1"]["tier"] == "free"


def test_k21_the_policys_tier_counts_not_its_default() -> None:
    """K21: whoever lets disks fill further is not told that production is to stop."""
    full = (trainer(disk_total_bytes=1_000, disk_free_bytes=50), player())
    story = given(*full).under(disk={"stop_production_from": 0.96})
    assert cluster(story).status == "healthy"
    assert coordinator(story).status == "healthy"
    story = given(*full).under(
        disk={"stop_background_from": 0.5, "cleanup_from": 0.6, "stop_production_from": 0.94}
    )
    assert coordinator(story).problems == (
        "train-1's disk is 95% full: production there is to stop",
    )


def test_agent_that_says_what_is_wrong_with_it_degrades() -> None:
    """P18: a node whose disk fails is there, and not well."""
    there = {**ALL_THERE, "agent.gpu-1": {"problem": "its index can't be written"}}
    result = cluster(given(*CLUSTER), present=there)
    assert result.details["reasons"] == ["agent-unwell"]
    assert result.message == "gpu-1: its index can't be written"


LOST = events.DataSyncFailed(config_key="all", source_node="")
DONE = events.DataSyncCompleted(config_key="all", source_node="")


def backup_due(cycle: int) -> Said:
    """The bucket's turn, of that cycle."""
    due = events.SweepDue(kind=SweepKind.S3, cycle=cycle, paths=("a",), found=1)
    return opens(f"sweep-{cycle}", due, by="boss")


def backup_ends(cycle: int, event: events.Event) -> Said:
    """And its end."""
    return decided(f"sweep-{cycle}", event)


def test_k19_backup_that_missed_two_cycles_degrades_until_one_completes() -> None:
    """Counted from the first that nothing has completed since; a failed one completes nothing."""
    bucket = policy_of(s3={"enabled": True, "bucket": "b"}, schedule={"s3_cycle_s": 100.0})
    story = given(
        *CLUSTER, backup_due(1), backup_ends(1, LOST), after(100), backup_due(2), after(99)
    )
    assert cluster(story, policy=bucket).healthy
    story.tell(backup_ends(2, LOST), after(1), backup_due(3))
    result = cluster(story, policy=bucket)
    assert (result.status, result.details["reasons"]) == ("degraded", ["backup-late"])
    assert result.details["s3"] == {"complete_age_s": None, "waiting_s": 200.0}
    assert cluster(story).healthy, "there is no bucket"
    story.tell(backup_ends(3, DONE), after(150))
    result = cluster(story, policy=bucket)
    assert result.healthy
    assert result.details["s3"] == {"complete_age_s": 150.0, "waiting_s": 0.0}


def test_k19_backup_for_which_nothing_waits_any_more_is_not_late() -> None:
    """The sweep failed, and what it named came to the bucket by another chain."""
    bucket = policy_of(s3={"enabled": True, "bucket": "b"}, schedule={"s3_cycle_s": 100.0})
    story = given(
        *CLUSTER,
        backup_due(1),
        backup_ends(1, LOST),
        after(1_000),
    )
    assert cluster(story, policy=bucket).healthy


def test_consumer_that_falls_behind_degrades() -> None:
    """P18: it is there, and facts wait for it."""
    behind = {"bridge": ConsumerState(LAG_LIMIT + 1, 5, 1)}
    result = cluster(given(*CLUSTER), consumers=behind)
    assert result.message == "1001 facts wait for bridge"
    assert result.details["consumers"]["bridge"] == {
        "waiting": 1001,
        "unacknowledged": 5,
        "redelivered": 1,
    }


def test_what_waits_for_a_node_that_is_away_does_not_degrade() -> None:
    """Rented nodes go for good, and their consumers stay."""
    behind = {"task_train-1": ConsumerState(LAG_LIMIT + 1, 0, 0)}
    assert cluster(given(*CLUSTER), consumers=behind).details["reasons"] == ["consumer-behind"]
    gone = given(*CLUSTER, events.HostOffline(node="train-1", reason="it was rented"))
    assert "consumer-behind" not in cluster(gone, consumers=behind).details["reasons"]


def test_log_on_too_few_servers_degrades() -> None:
    """An operator who stops one server after the other must know when to wait."""
    whole = cluster(given(*CLUSTER), standing=Standing(3))
    assert whole.healthy
    assert whole.details["servers"]["replicas"] == 3
    assert not whole.details["servers"]["short"]
    short = Standing(3, {"DATAPLANE": 2, "bridge": 1}, ("nats-2", "nats-3"))
    result = cluster(given(*CLUSTER), standing=short)
    assert (result.status, result.details["reasons"]) == ("degraded", ["servers"])
    assert result.message == (
        "bridge, and 1 more on 1 of 3 servers (nats-2, nats-3 behind or away): "
        "stop no other server until that is over"
    )


def test_p18_a_bus_that_stores_nothing_is_not_called_healthy() -> None:
    """On a full disk what was said last stays, also that somebody leads: it is said to be old."""
    assert cluster(given(*CLUSTER), standing=Standing(quiet_s=QUIET_S)).healthy
    result = cluster(given(*CLUSTER), standing=Standing(quiet_s=QUIET_S + 5))
    assert not result.healthy
    assert "stored no heartbeat for 25 s" in result.message
    assert "make room, then restart the server" in result.message


def test_log_whose_servers_nobody_can_name_is_not_called_healthy() -> None:
    """It is when servers restart that nobody answers, and then the next one must stay."""
    result = cluster(given(*CLUSTER), standing=Standing(problem="no answer within 10 s"))
    assert (result.status, result.details["reasons"]) == ("degraded", ["servers"])
    assert result.message == (
        "on how many servers the log stands is not known: no answer within 10 s"
    )


def test_what_the_bus_did_not_tell_is_not_called_healthy() -> None:
    """It was reached, and then fell silent: all that it said may be well, but not all was said."""
    result = cluster(given(*CLUSTER), unknown="the bus told only a part of how it is: no answer")
    assert (result.status, result.details["reasons"]) == ("degraded", ["unknown"])
    assert result.message == "the bus told only a part of how it is: no answer"


@pytest.mark.parametrize(("size", "limit", "words"), [(89, 100, ""), (90, 100, "90%"), (9, 0, "")])
def test_log_that_is_nearly_full_degrades_before_it_is(size: int, limit: int, words: str) -> None:
    """By max_bytes, where it has any."""
    result = cluster(given(*CLUSTER), standing=Standing(size_bytes=size, limit_bytes=limit))
    assert result.healthy is not bool(words)
    assert f"the log has {words}" in result.message or not words


def test_oldest_chain_is_shown() -> None:
    """By id, age and what it waits for."""
    story = given(*CLUSTER, opens("c1", played()), after(5), opens("c2", played()), after(5))
    assert cluster(story).details["oldest_chain"] == {
        "id": "c1",
        "age_s": 10.0,
        "status": "waiting for files",
    }


def test_clock_that_jumps_is_named_for_a_while() -> None:
    """Ahead or back; one that is kept right is not."""
    watch = ClockWatch()
    assert watch.look(1_000.0, 10.0) == ""
    assert watch.look(1_006.0, 15.0) == ""
    assert watch.look(1_611.0, 20.0) == "this machine's clock jumped 600 s ahead"
    assert watch.look(1_616.0, 25.0) != ""
    assert watch.look(1_611.0 + NAMED_S, 20.0 + NAMED_S) == ""
    assert watch.look(1_611.0, 25.0 + NAMED_S) == "this machine's clock jumped 905 s back"


# Copies, the bucket, the archive

THREE = (trainer(), player(), trainer("train-2"))
ALL_THREE = ALL_THERE | {"agent.train-2": {}}


def survey(story: Story, **found: Any) -> dict[str, dict[str, Any]]:
    """Heartbeats of a cluster whose leader has just looked at all copies."""
    said = {"last_at": story.now, "short": 0, "oldest_short": "", "oldest_short_at": 0.0, **found}
    return ALL_THREE | {"coordinator.boss": {"leads": True, "sweeps": said}}


def test_what_has_had_too_few_copies_for_long_degrades() -> None:
    """K8: named, with its age; what is short for a moment is not."""
    story = given(*THREE)
    limit = Policy().replication.critical_after_s
    for age, healthy in ((limit - 1, True), (limit, False)):
        short = {"short": 3, "oldest_short": "games/a.db", "oldest_short_at": story.now - age}
        result = cluster(story, present=survey(story, **short))
        assert result.healthy is healthy
        assert result.details["under_replicated"]["oldest_age_s"] == age
    assert f"games/a.db has had too few copies for {limit:.0f} s, and 2 more" in result.message
    assert result.details["reasons"] == ["under-replicated"]


def test_a_cluster_too_small_for_the_minimum_is_not_ill_for_it() -> None:
    """Two nodes can't keep three copies; how it stands is in the details all the same."""
    story = given(*CLUSTER)
    beats = survey(story, short=1, oldest_short="games/a.db", oldest_short_at=1.0)
    result = cluster(story, present={k: beats[k] for k in ALL_THERE})
    assert result.healthy
    assert result.details["under_replicated"]["paths"] == 1


def test_before_the_first_survey_nothing_is_said_of_copies() -> None:
    """Nobody has looked; who does not lead does not look."""
    story = given(*THREE)
    assert cluster(story, present=survey(story, last_at=0.0)).details["under_replicated"] == {}
    beats = survey(story, short=1, oldest_short="games/a.db", oldest_short_at=1.0)
    beats["coordinator.boss"]["leads"] = False
    assert cluster(story, present=beats).details["under_replicated"] == {}


def test_the_last_proven_copy_of_each_configuration_is_told() -> None:
    """What, where, and how long ago by the log's clock."""
    story = given(*CLUSTER, ran("c1", played(), games_of("gpu-1")), after(50.0))
    entry = games_of("gpu-1")
    copies = cluster(story).details["last_copies"]
    assert set(copies) == {entry.config_key}
    said = copies[entry.config_key]
    assert (said["path"], said["on"]) == (entry.path, "train-1")
    assert 50.0 <= said["age_s"] < 60.0
    assert cluster(given(*CLUSTER)).details["last_copies"] == {}


def kept(story: Story, *, age_s: float, started_s: float = 0.0, **said: Any) -> HealthCheckResult:
    """The verdict where a coordinator archives every 100 s and did so last `age_s` ago."""
    at = story.now - age_s if age_s else 0.0
    archive = {"sequence": 1, "at": at, "interval_s": 100.0, "problem": "", "held": None, **said}
    beat = {"archive": archive, "started": story.now - started_s}
    return cluster(story, present=ALL_THERE | {"coordinator.boss": beat})


def test_an_archive_that_missed_its_cycles_degrades() -> None:
    """With the reason, and how far behind the log it is."""
    story = given(*CLUSTER)
    result = kept(story, age_s=300.0)
    assert result.healthy
    assert result.details["archive"]["lag"] == len(story.facts) - 1
    result = kept(story, age_s=301.0, problem="no space left")
    assert result.message == "the log was last archived 301 s ago: no space left"
    assert result.details["reasons"] == ["archive-behind"]
    assert cluster(story).details["archive"] == {}


def test_an_archive_not_yet_begun_counts_from_its_keepers_start() -> None:
    """Who has just started is not late."""
    story = given(*CLUSTER)
    assert kept(story, age_s=0.0, started_s=300.0).healthy
    assert not kept(story, age_s=0.0, started_s=301.0).healthy


def test_of_several_keepers_the_freshest_counts() -> None:
    """They keep one archive."""
    story = given(*CLUSTER)
    archive = {"sequence": 1, "interval_s": 100.0, "problem": "", "held": None}
    late = {"archive": archive | {"at": 1.0}, "leads": True}
    fresh = {"archive": archive | {"at": story.now}}
    beats = ALL_THERE | {"coordinator.boss": late, "coordinator.second": fresh}
    assert cluster(story, present=beats).healthy


def test_what_keeps_the_log_from_its_bound_is_named() -> None:
    """An operator must know whom to ask."""
    held = {"sequence": 7, "reason": "the consumer exporter has not acknowledged it"}
    result = kept(given(*CLUSTER), age_s=1.0, held=held)
    assert result.status == "degraded"
    assert "before 7: the consumer exporter has not acknowledged it" in result.message
