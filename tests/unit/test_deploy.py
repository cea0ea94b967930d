"""What an installation copies: files that parse, and metrics that are really said."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dataplane.keys import KeyStore
from dataplane.metrics import Metrics
from dataplane.overview import overview
from streams.server import find_binary
from tests.integration.certificates import Authority
from tests.spec import games_of, given, played, player, policy_of, ran, trainer

DEPLOY = Path(__file__).parents[2] / "deploy"
COMMANDS = ("coordinator", "agent", "up")


@pytest.fixture
def said() -> str:
    """What a coordinator of a small cluster says to Prometheus."""
    story = given(trainer(), player(), ran("c1", played(), games_of("gpu-1")))
    seen = overview(
        story.view,
        now=story.now,
        beats={},
        last_sequence=len(story.facts),
        policy=policy_of(replication={"minimum": 2}),
    )
    metrics = Metrics()
    chain = story.view.chain("c1")
    assert chain is not None
    metrics.note(story.facts, [chain])
    return metrics.render(seen).decode() + "dataplane_s3_backup_age_seconds dataplane_link_open"


def _named(text: str) -> set[str]:
    return set(re.findall(r"\bdataplane_[a-z0-9_]+", text))


def test_every_step_of_the_runbook_was_executed() -> None:
    """Or it is said what could not be had; no step is left as a guess."""
    runbook = (DEPLOY / "README.md").read_text()
    assert "not tried" not in runbook.lower()
    assert runbook.count("*Tested*") > 8


def test_rules_and_dashboard_ask_for_metrics_that_are_said(said: str) -> None:
    """A renamed metric would leave an alert silent for ever."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana" / "dataplane.json").read_text())
    for panel in dashboard["panels"]:
        expressions += [target["expr"] for target in panel["targets"]]
    missing = {name for text in expressions for name in _named(text)} - _named(said)
    assert missing == set()


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
