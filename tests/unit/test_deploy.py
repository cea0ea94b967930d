"""What an installation copies: files that parse, and metrics that are really said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from dataplane.keys import KeyStore
from dataplane.metrics import Metrics
from dataplane.overview import overview
from dataplane.pulse import PULSE_LIMIT_S
from projections.chains import ChainRow
from streams.codec import fact_id, node_fact
from streams.events import Event
from streams.memory import MemoryLog
from streams.server import find_binary
from streams.values import Transport, TransportResult
from tests.integration.certificates import Authority
from tests.spec import (
    Story,
    answers,
    assigned,
    failed,
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

DEPLOY = Path(__file__).parents[2] / "deploy"
COMMANDS = ("coordinator", "agent", "up")


@pytest.fixture
async def said() -> str:
    """What a coordinator of a small cluster with a bucket says to Prometheus."""
    ended = ran("c1", played(), games_of("gpu-1"))
    begun = [opens("c2", played()), answers("c2", "gpu-1", games_of("gpu-1", "more"))]
    story = given(trainer(), player(), ended, *begun, said_what_is_owed, assigned, _cut_off)
    return await _said(story, [story.view.chain("c1")])


def _cut_off(story: Story) -> Iterator[Event]:
    """What is under way fails, by the transport that was tried."""
    tried = TransportResult(
        success=False,
        transport_used=Transport.P2P_GOSSIP,
        bytes_transferred=10,
        duration_seconds=1.0,
        error_class="Stalled",
    )
    for event in failed()(story):
        yield msgspec.structs.replace(event, results=(tried,))


async def _said(
    story: Story,
    ended: Sequence[ChainRow | None] = (),
    *,
    log: MemoryLog | None = None,
    backs_up: bool = True,
) -> str:
    """The samples of one scrape, without what is said about them."""
    policy = policy_of(replication={"minimum": 2})
    beats: dict[str, Any] = {}
    last = len(story.facts)
    seen = overview(story.view, now=story.now, beats=beats, last_sequence=last, policy=policy)
    metrics = Metrics(backs_up=backs_up)
    await metrics.begin(log or MemoryLog())
    metrics.note(story.facts, [row for row in ended if row is not None])
    lines = metrics.render(seen).decode().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def _rules() -> dict[str, str]:
    """The alerts, each with what it asks."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    return {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


def _panels() -> list[str]:
    """What the panels of the dashboard ask."""
    dashboard = json.loads((DEPLOY / "grafana" / "dataplane.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _named(text: str) -> set[str]:
    return set(re.findall(r"\bdataplane_[a-z0-9_]+", text))


def test_every_step_of_the_runbook_was_executed() -> None:
    """Or it is said what could not be had; no step is left as a guess."""
    runbook = (DEPLOY / "README.md").read_text()
    assert "not tried" not in runbook.lower()
    assert runbook.count("*Tested*") > 8


def test_rules_and_dashboard_ask_for_metrics_that_are_said(said: str) -> None:
    """A renamed metric would leave an alert silent for ever."""
    asked = {name for text in (*_rules().values(), *_panels()) for name in _named(text)}
    assert asked - _named(said) == set()


async def test_what_an_alert_watches_the_growth_of_is_there_before_the_first_one() -> None:
    """A series that is born with the first rejection, or the first failure, never grew."""
    before = await _said(given(trainer(), player()))
    watched = [
        series
        for rule in _rules().values()
        for grown in re.findall(r"(?:rate|increase|delta)\(([^\[]+)\[", rule)
        for series in re.findall(r"dataplane_\w+(?:\{[^}]*\})?", grown)
    ]
    assert len(watched) >= 3
    for series in watched:
        assert series in before, series
    assert "dataplane_rejected_messages 0.0" in before
    after = await _said(given(trainer(), raw("dp.node.gpu-1.WHAT_IS_THIS.all")))
    assert "dataplane_rejected_messages 1.0" in after


async def test_where_nothing_was_ever_backed_up_the_age_is_that_of_the_log() -> None:
    """Or the alert would be silent just where no backup ever succeeded."""

    old = MemoryLog(clock=lambda: time.time() - 7000)

    async def age(*, backs_up: bool = True) -> float | None:
        said = await _said(given(trainer()), log=old, backs_up=backs_up)
        found = re.search(r"(?m)^dataplane_s3_backup_age_seconds (.*)$", said)
        return float(found[1]) if found else None

    assert await age() == pytest.approx(0, abs=60), "an empty log is new"
    await old.publish(node_fact(played(), "gpu-1", fact_id("played")))
    assert await age() == pytest.approx(7000, abs=60)
    assert await age(backs_up=False) is None, "there is no bucket"


def test_no_counter_is_added_up_over_coordinators() -> None:
    """Each of them counts every fact: a sum over instances says as many times too much."""
    for expression in (*_rules().values(), *_panels()):
        for by in re.findall(r"\bsum\b(?: by \(([^)]*)\))? ?\((?:rate|increase|delta)", expression):
            assert "instance" in by, expression
    counting = [one for one in _panels() if "_total[" in one or "_bucket[" in one]
    assert len(counting) == 6
    assert all("max by (" in one for one in counting)


def test_compose_is_three_servers_two_coordinators_and_what_they_mount() -> None:
    """Parsed, with the merges that compose makes; every file it mounts is there."""
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert {service["image"] for service in services.values()} == {"dataplane"}
    servers = [one for one in services.values() if one.get("entrypoint") == ["nats-server"]]
    assert len(servers) == 3
    own = [service for service in services.values() if service not in servers]
    assert all(service["command"][0] in COMMANDS for service in own)
    assert all(service["environment"]["DATAPLANE_REPLICAS"] == "3" for service in own)
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            known = source in compose["volumes"] or (DEPLOY / source).resolve().is_file()
            assert known, volume


@pytest.mark.parametrize("locked", [False, True])
def test_each_server_of_the_cluster_has_a_configuration_that_is_right(
    tmp_path: Path, locked: bool
) -> None:
    """nats-server itself reads it, as it is and with all that it marks: keys, secret, TLS."""
    shutil.copy(DEPLOY.parent / "nats.conf", tmp_path / "base.conf")
    shutil.copy(DEPLOY / "nats" / "tls.conf", tmp_path)
    KeyStore(tmp_path / "keys").init()
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue("server")
    assert certificate.exists() and key.rename(tmp_path / "tls" / "server.key")
    for number in (1, 2, 3):
        text = (DEPLOY / "nats" / f"dp-{number}.conf").read_text()
        assert f"server_name: dp-{number}" in text
        marked, count = re.subn(r"(?m)^( *)# [^:\n]*: +(include .*)$", r"\1\2", text)
        assert count == 4
        conf = tmp_path / f"dp-{number}.conf"
        conf.write_text(marked if locked else text)
        checked = subprocess.run(
            [find_binary(), "-t", "-c", conf], capture_output=True, text=True, cwd=tmp_path
        )
        assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("unit", sorted(file.name for file in (DEPLOY / "systemd").iterdir()))
def test_units_start_what_there_is_and_start_it_again(unit: str) -> None:
    """For ever: it makes the processes' one answer to trouble, to end, a good one."""
    text = (DEPLOY / "systemd" / unit).read_text()
    assert "Restart=always" in text
    assert "StartLimitIntervalSec=0" in text
    start = re.search(r"^ExecStart=/opt/dataplane/bin/(.*)$", text, re.MULTILINE)
    assert start is not None
    if not unit.startswith("nats"):
        assert start[1].split()[-1] in COMMANDS
        # Where the process could not end itself, systemd ends it.
        assert "Type=notify\n" in text
        assert f"WatchdogSec={PULSE_LIMIT_S:.0f}\n" in text
