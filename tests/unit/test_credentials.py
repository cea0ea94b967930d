"""The files that a configuration names: each that can't be used is refused by its setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.config import ConfigError, DataPlaneConfig
from dataplane.credentials import (
    bus_key,
    bus_tls,
    look_at_agent_files,
    look_at_page_files,
    warn_of_open_keys,
)
from tests.integration.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Signs two certificates: of a node, and of another."""
    return Authority(tmp_path)


@pytest.mark.parametrize(
    "setting",
    ["http_tls_ca", "http_tls_cert", "http_tls_key", "ssh_known_hosts", "ssh_identity"],
)
def test_a_file_that_is_not_there_is_refused_by_its_setting(
    tmp_path: Path, authority: Authority, setting: str
) -> None:
    """Not as an agent that starts, and fails at its first transfer; nor with a number alone."""
    cert, key = authority.issue("node")
    files = {"http_tls_cert": str(cert), "http_tls_key": str(key)}
    config = DataPlaneConfig.from_values({**files, setting: str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=f"{setting}: .*/none can't be read: No such file"):
        look_at_agent_files(config)


@pytest.mark.parametrize("settings", ["http_tls", "web_tls", "nats_tls"])
def test_a_certificate_and_the_key_of_another_are_refused_by_name(
    authority: Authority, settings: str
) -> None:
    """With which files, and why."""
    cert, _ = authority.issue("node")
    _, key = authority.issue("other")
    named = {f"{settings}_cert": str(cert), f"{settings}_key": str(key)}
    config = DataPlaneConfig.from_values(named)
    with pytest.raises(
        ConfigError, match=f"{settings}_cert .*node.pem and .*other.key: .*MISMATCH"
    ):
        look_at_agent_files(config)
        look_at_page_files(config)
        bus_tls(config)


@pytest.mark.parametrize("setting", ["http_tls_ca", "nats_tls_ca"])
def test_what_is_no_certificate_is_refused_by_its_setting(tmp_path: Path, setting: str) -> None:
    """A key in its place, or another kind of file."""
    (tmp_path / "wrong").write_text("no certificate")
    config = DataPlaneConfig.from_values({setting: str(tmp_path / "wrong")})
    with pytest.raises(ConfigError, match=f"{setting} .*/wrong: no certificate"):
        look_at_agent_files(config)
        bus_tls(config)


def test_a_key_of_the_bus_that_is_not_there_is_refused_by_its_setting(tmp_path: Path) -> None:
    """Before anybody is asked."""
    with pytest.raises(ConfigError, match=r"nats_nkey: .*/none can't be read: No such file"):
        bus_key("nats_nkey", str(tmp_path / "none"))
    assert bus_key("nats_nkey", "") is None


def test_a_private_key_for_ssh_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """The ssh client takes no such key: nothing would arrive by it."""
    key = tmp_path / "id"
    key.touch(mode=0o644)
    config = DataPlaneConfig.from_values({"ssh_identity": str(key)})
    with pytest.raises(ConfigError, match=f"ssh_identity: others may read {key}: chmod 600 it"):
        look_at_agent_files(config)
    key.chmod(0o600)
    look_at_agent_files(config)


def test_other_keys_that_others_may_read_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Containers are given them so: said, not refused."""
    key = tmp_path / "gpu-7.seed"
    key.touch(mode=0o644)
    config = DataPlaneConfig.from_values({"nats_nkey": str(key)})
    warn_of_open_keys(config)
    assert caplog.messages == [f"nats_nkey: others may read {key}: chmod 600 it"]
    key.chmod(0o600)
    warn_of_open_keys(config)
    assert len(caplog.messages) == 1


def test_no_name_for_ssh_files_is_the_users_own() -> None:
    """As the commented file shows the default."""
    config = DataPlaneConfig.from_values({"ssh_identity": "", "ssh_known_hosts": ""})
    assert (config.ssh_identity, config.ssh_known_hosts) == (None, None)
    look_at_agent_files(config)
