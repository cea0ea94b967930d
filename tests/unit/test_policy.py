"""The policy as data: written and read back, checked, told in words, and changed in one place."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dataplane.cli import main
from dataplane.cli.policies import as_toml
from dataplane.config import DataPlaneConfig
from dataplane.policy import Policy
from dataplane.policy.reading import TRIGGERS, PolicyError, as_tables, laid_over
from dataplane.policy.telling import sentences
from streams.values import NodeDescription, Role, SyncPriority, Trait
from tests.spec import games_of, given, holds, node, played, player, policy_of, trainer

GAMES = games_of("gpu-1")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["dataplane", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_policy_that_is_written_can_be_read_back() -> None:
    """What `policy show` prints is a configuration, and it changes nothing."""
    written = "\n".join(as_toml(as_tables(Policy()), {}))
    assert laid_over(Policy(), tomllib.loads(written)["policy"]) == Policy()
    changed = policy_of(nodes={"spot-*": {"traits": ["ephemeral"]}}, disk={"cleanup_from": 0.8})
    written = "\n".join(as_toml(as_tables(changed), {}))
    assert laid_over(Policy(), tomllib.loads(written)["policy"]) == changed


def test_changing_one_line_of_the_file_changes_where_data_goes(tmp_path: Path) -> None:
    """A routing rule lives in one place: the same trigger, another plan, nothing else touched."""
    file = tmp_path / "dataplane.toml"
    story = given(trainer(), node("vault", Role.STORAGE), player(), holds("gpu-1", GAMES))
    story.when(played()).then(f"gpu-1 -> train-1: {GAMES.path}")
    file.write_text('[policy.placement.rules.selfplay]\nto = ["storage"]\n')
    story.policy = DataPlaneConfig.load(file, environment={}).policy()
    story.when(played()).then(f"gpu-1 -> vault: {GAMES.path}")


def test_new_rule_is_a_new_row_of_the_table() -> None:
    """What no default rule moves can be moved by one more table."""
    rule = {
        "on": ["SELFPLAY_COMPLETE"],
        "data": ["games"],
        "to": ["name:vault-*"],
        "config_keys": ["hex8_*"],
        "priority": "low",
        "reason": "hex games for the vault",
    }
    story = given(player(), node("vault-7"), node("cellar"), holds("gpu-1", GAMES))
    story.under(placement={"rules": {"selfplay": {"enabled": False}, "hex": rule}})
    story.when(played()).then(f"gpu-1 -> vault-7: {GAMES.path}")
    assert story.plans(played()).plans[0].priority is SyncPriority.LOW
    story.when(played("gpu-1", config_key="square8_2p")).then("nothing-held: all")


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"placement": {"rules": {"selfplay": {"to": ["trainer"]}}}}, ["selfplay.to", "training"]),
        ({"placement": {"rules": {"selfplay": {"to": []}}}}, ["selfplay.to", "names nobody"]),
        (
            {"placement": {"rules": {"mine": {"on": ["SELFPLAY_DONE"], "to": ["gpu"]}}}},
            ["policy.placement.rules.mine.on", "'SELFPLAY_DONE'", "SELFPLAY_COMPLETE"],
        ),
        (
            {"placement": {"rules": {"selfplay": {"strategy": "push"}}}},
            ["selfplay.strategy", "auto, hybrid, ephemeral, broadcast, pull"],
        ),
        (
            {"placement": {"rules": {"selfplay": {"priority": "urgent"}}}},
            ["policy.placement.rules.selfplay.priority", "critical, high, normal, low, background"],
        ),
        (
            {"placement": {"rules": {"selfplay": {"source": "anybody"}}}},
            ["selfplay.source", "speaker, holder"],
        ),
        (
            {"placement": {"strategies": {"pull": {"collect_to": ["boss"]}}}},
            ["strategies.pull.collect_to", "coordinator"],
        ),
        ({"disk": {"cleanup_from": 0.95}}, ["disk.cleanup_from", "stop_production_from", "0.93"]),
        ({"nodes": {"gpu-*": {"roles": ["trainer"]}}}, ["policy.nodes.gpu-*.roles", "selfplay"]),
        ({"quality": {"min_mean": 2}}, ["policy.quality.min_mean", "<= 1.0"]),
        (
            {"quality": {"complete_from_moves": {"hex": 20}}},
            ["policy.quality.complete_from_moves", "'hex'", "hexagonal"],
        ),
        ({"paths": {"globs": [["**", "mine"]]}}, ["policy.paths.globs", "owned, shared, merged"]),
    ],
)
def test_what_can_not_mean_anything_is_refused_by_field(
    tables: dict[str, Any], words: list[str]
) -> None:
    """The field's path and what it may be, for names and limits as well as for types."""
    with pytest.raises(PolicyError) as error:
        policy_of(**tables)
    for word in words:
        assert word in str(error.value)


def test_node_counts_as_what_the_policy_says_of_its_name() -> None:
    """The last glob that matches counts; what it does not name stays the node's own word."""
    policy = policy_of(
        nodes={
            "gpu-*": {"roles": ["selfplay"], "traits": ["gpu", "ephemeral"]},
            "gpu-7": {"traits": ["gpu"]},
        }
    )
    said = NodeDescription(name="gpu-7", roles=(Role.TRAINING,), provider="vast")
    counted = policy.of_node(said)
    assert (counted.roles, counted.traits, counted.provider) == (
        (Role.SELFPLAY,),
        (Trait.GPU,),
        "vast",
    )
    assert policy.is_ephemeral(NodeDescription(name="gpu-8"))
    assert not policy.is_ephemeral(said)
    assert policy.of_node(NodeDescription(name="cpu-1")) == NodeDescription(name="cpu-1")


def test_every_trigger_is_told_in_words() -> None:
    """`policy explain` leaves no trigger out, and names the rule that answers it."""
    lines = list(sentences(Policy()))
    for trigger in TRIGGERS:
        assert trigger in lines
    text = "\n".join(lines)
    assert "rsync → http → base64" in text
    assert "MODEL_DISTRIBUTION_COMPLETE at 10 or all" in text
    assert "no bucket" in text and "coordinator without external storage" in text


def test_check_ends_with_the_field_or_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the field's name, or 0; a file that is not there is said."""
    file = tmp_path / "dataplane.toml"
    file.write_text("[policy.disk]\ncleanup_from = 85\n")
    assert run(monkeypatch, "policy", "check", str(file)) == 2
    assert "policy.disk.cleanup_from" in capsys.readouterr().err
    file.write_text("[policy.disk]\ncleanup_from = 0.85\n")
    assert run(monkeypatch, "policy", "check", str(file)) == 0
    assert "is valid" in capsys.readouterr().out
    assert run(monkeypatch, "policy", "check", str(tmp_path / "none.toml")) == 2


def test_show_says_where_each_value_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Default, file or environment, by field; under the flat names too."""
    file = tmp_path / "dataplane.toml"
    file.write_text("max_retries = 7\n[policy.disk]\ncleanup_from = 0.8\n")
    monkeypatch.setenv("DATAPLANE_POLICY__QUALITY__MIN_GAMES", "2")
    assert run(monkeypatch, "--config", str(file), "policy", "show", "--json") == 0
    fields = {f["field"]: f for f in json.loads(capsys.readouterr().out)["fields"]}
    assert fields["retries.max_retries"] == {
        "field": "retries.max_retries",
        "value": 7,
        "from": f"{file}: max_retries",
    }
    assert fields["disk.cleanup_from"]["from"] == f"{file}: policy.disk.cleanup_from"
    assert fields["quality.min_games"]["value"] == 2
    assert fields["quality.min_games"]["from"] == "environment: policy.quality.min_games"
    assert fields["retries.stall_s"]["from"] == "default"


def test_explain_of_a_trigger_nobody_knows_names_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error is no empty answer."""
    assert run(monkeypatch, "policy", "explain", "SELFPLAY_DONE") == 2
    assert "SELFPLAY_COMPLETE" in capsys.readouterr().err.replace("\n", "")
    assert run(monkeypatch, "policy", "explain", "SELFPLAY_COMPLETE", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["rule"] for row in rows] == ["selfplay", "selfplay-backup"]


def test_example_of_the_readme_is_a_policy() -> None:
    """What a newcomer pastes is read, and says what the text says."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(\[policy.*?)```", readme, re.DOTALL)
    policy = laid_over(Policy(), tomllib.loads(example)["policy"])
    rule = policy.placement.rules["selfplay"]
    assert (rule.copies, rule.deadline_s, rule.to) == (2, 60.0, ("training",))
    assert policy.placement.rules["vault"].priority is SyncPriority.LOW
    assert policy.is_ephemeral(NodeDescription(name="spot-3"))
