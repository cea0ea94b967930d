"""Keys as files beside nats.conf, and the commands that make them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataplane.cli import main as _all_commands  # noqa: F401
from dataplane.cli.app import app
from dataplane.config import ConfigError
from dataplane.keys import KeyStore
from streams.permissions import BusRole


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """A coordinator, and a node that subscribes."""
    store = KeyStore(tmp_path / "keys")
    store.init()
    store.add("train-1", BusRole.NODE, ("exporter",))
    return store


def secret_of(keys: KeyStore) -> str:
    """What the servers show each other."""
    found = re.search(r'password: "(\w+)"', keys.routes_include.read_text())
    assert found
    return found[1]


def keys_command(keys: KeyStore, *words: str, status: int = 0) -> str:
    """What ``dataplane keys`` says."""
    done = CliRunner().invoke(app, ["keys", *words, "--dir", str(keys.directory)])
    assert done.exit_code == status, done.output
    return re.sub(r"\s+", " ", done.output)


def test_the_servers_secret_is_for_its_owner_and_in_every_route(keys: KeyStore) -> None:
    """0600, long, in no other file; a route without it would be refused."""
    assert keys.routes_include.stat().st_mode & 0o777 == 0o600
    secret = secret_of(keys)
    assert len(secret) == 64
    routes = re.findall(r'"nats-route://([^"]+)"', keys.routes_include.read_text())
    assert routes == [f"route:{secret}@dp-{number}:6222" for number in (1, 2, 3)]
    others = [file for file in keys.directory.iterdir() if file != keys.routes_include]
    assert not any(secret in file.read_text() for file in others)


def test_other_servers_have_the_same_secret(keys: KeyStore) -> None:
    """Those that run go on knowing each other while one takes another's place."""
    before = secret_of(keys)
    said = keys_command(keys, "routes", "dp-1", "10.0.0.3:7222", "[fd00::4]:6222")
    assert before not in said
    routes = re.findall(r'@([^"]+)"', keys.routes_include.read_text())
    assert routes == ["dp-1:6222", "10.0.0.3:7222", "[fd00::4]:6222"]
    assert secret_of(keys) == before
    assert keys.routes_include.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("server", ["", "nats://dp-1", 'dp-1"', "a b", "dp-1:x", "user:pass@dp-1"])
def test_what_is_no_address_is_no_server(keys: KeyStore, server: str) -> None:
    """The file stays as it was: nats-server would read something else in it."""
    before = keys.routes_include.read_text()
    with pytest.raises(ConfigError, match="host or host:port"):
        keys.join(["dp-1", server])
    assert keys.routes_include.read_text() == before


def test_init_takes_the_servers_of_a_bus(tmp_path: Path) -> None:
    """Whoever calls them otherwise says so once."""
    store = KeyStore(tmp_path / "keys")
    said = keys_command(store, "init", "--servers", "a,b:7000")
    assert "routes.conf" in said
    assert re.findall(r'@([^"]+)"', store.routes_include.read_text()) == ["a:6222", "b:7000"]


def test_a_refresh_writes_what_this_version_allows_for_the_same_keys(keys: KeyStore) -> None:
    """Keys, names, durables and the servers' secret stay; what was missing is there."""
    users, routes = keys.include.read_text(), keys.routes_include.read_text()
    seed = keys.seed_file("train-1").read_text()
    keys.include.write_text(re.sub(r'"[^"]*CONSUMER\.LIST[^"]*", ', "", users))
    assert "CONSUMER.LIST" not in keys.include.read_text()
    said = keys_command(keys, "refresh")
    assert "2 keys" in said and "reload" in said
    assert keys.include.read_text() == users
    assert keys.routes_include.read_text() == routes
    assert keys.seed_file("train-1").read_text() == seed


def test_keys_of_a_version_without_the_servers_secret_get_one(keys: KeyStore) -> None:
    """For the servers that deploy/nats names; it is of no use to anybody who had a key."""
    keys.routes_include.unlink()
    assert "routes.conf" in keys_command(keys, "refresh")
    assert len(secret_of(keys)) == 64
    assert keys.routes_include.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("words", [("refresh",), ("routes", "dp-1")])
def test_where_there_are_no_keys_none_are_written(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A wrong directory is said, and stays as it is."""
    store = KeyStore(tmp_path)
    done = CliRunner().invoke(app, ["keys", *words, "--dir", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert not list(store.directory.iterdir())
