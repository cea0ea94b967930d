"""The keys of a cluster's processes, and what each may do, as files beside ``nats.conf``.

    keys/users.json     who there is: names, roles, public keys
    keys/users.conf     the same as nats-server reads it; include it, and reload the server
    keys/routes.conf    what the servers of one bus show each other; include it in ``cluster {}``
    keys/<name>.seed    the private key, for its owner alone; copy it to that machine and delete it

A private key is never shown and never in ``users.json`` or ``users.conf``. ``routes.conf`` is a
secret, too: who has it can be a server of the bus, and a server is believed whatever it passes on.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import nkeys

from dataplane.config import ConfigError
from streams.permissions import BusRole, permissions
from streams.values import S3_NODE, is_token

#: Where the servers of a bus find each other, as in deploy/nats.
SERVERS = ("dp-1", "dp-2", "dp-3")
_ROUTES_PORT = 6222
_SERVER = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class User(msgspec.Struct, frozen=True):
    """Somebody who may use the bus."""

    name: str
    role: BusRole
    #: Public; what nats-server knows of the key.
    nkey: str
    #: Durable consumers it may make, for subscriptions that outlive their process.
    durables: tuple[str, ...] = ()


class KeyStore:
    """A directory of keys. Every change writes ``users.conf`` anew, whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def include(self) -> Path:
        """What ``nats.conf`` includes."""
        return self.directory / "users.conf"

    @property
    def routes_include(self) -> Path:
        """What ``cluster {}`` in ``nats.conf`` includes; for the servers alone."""
        return self.directory / "routes.conf"

    def users(self) -> list[User]:
        """Who there is, by name. Raises ConfigError where `init` has not been."""
        try:
            text = (self.directory / "users.json").read_bytes()
        except FileNotFoundError:
            raise ConfigError(f"{self.directory} holds no keys: dataplane keys init") from None
        return msgspec.json.decode(text, type=list[User])

    def init(self, coordinator: str = "coordinator", servers: Sequence[str] = SERVERS) -> User:
        """Make the directory with the coordinators' key, and the secret of the servers.

        Raises ConfigError if it is there, or for what can't be a server's address.
        """
        if (self.directory / "users.json").exists():
            raise ConfigError(f"{self.directory} holds keys already")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        self.join(servers)
        return self._add([], coordinator, BusRole.COORDINATOR, ())

    def refresh(self) -> list[User]:
        """Write what nats-server reads anew, for the same keys.

        A version may ask more of the bus than an older one allowed. A secret that the servers have
        stays; where there is none they get one.
        """
        users = self.users()
        self._write(users)
        if not self.routes_include.exists():
            self.join(SERVERS)
        return users

    def join(self, servers: Sequence[str]) -> None:
        """Write ``routes.conf`` for these servers (host or host:port), with the secret there is.

        Raises ConfigError for what can't be a server's address.
        """
        for server in servers:
            if not _SERVER.fullmatch(server):
                raise ConfigError(f"{server!r} must be a host or host:port")
        secret = self._secret() or secrets.token_hex(32)
        _replace(self.routes_include, routes_text(servers, secret).encode(), mode=0o600)

    def _secret(self) -> str:
        try:
            found = re.search(r'password: "([0-9a-f]+)"', self.routes_include.read_text())
        except FileNotFoundError:
            return ""
        return found[1] if found else ""

    def add(self, name: str, role: BusRole, durables: tuple[str, ...] = ()) -> User:
        """A new key. Raises ConfigError for a name that is taken or can't be one."""
        return self._add(self.users(), name, role, durables)

    def revoke(self, name: str) -> User:
        """Take somebody out; who is connected with the key is thrown out at the next reload."""
        users = self.users()
        gone = next((user for user in users if user.name == name), None)
        if gone is None:
            names = ", ".join(user.name for user in users)
            raise ConfigError(f"{name!r} has no key; there are: {names}")
        self._write([user for user in users if user is not gone])
        self.seed_file(name).unlink(missing_ok=True)
        return gone

    def seed_file(self, name: str) -> Path:
        """Where a private key is, until it is brought to its machine."""
        return self.directory / f"{name}.seed"

    def _add(self, users: list[User], name: str, role: BusRole, durables: tuple[str, ...]) -> User:
        for word in (name, *durables):
            if not is_token(word):
                raise ConfigError(f"{word!r} must be 1 to 64 of A-Z a-z 0-9 _ -")
        if name == S3_NODE:
            raise ConfigError(f"{name!r} is what the bucket is called")
        if any(user.name == name for user in users):
            raise ConfigError(f"{name!r} has a key already; revoke it first")
        seed, public = new_pair()
        file = self.seed_file(name)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(seed + "\n")
        user = User(name, role, public, durables)
        self._write([*users, user])
        return user

    def _write(self, users: list[User]) -> None:
        users = sorted(users, key=lambda user: (user.role, user.name))
        plain = msgspec.json.format(msgspec.json.encode(users))
        _replace(self.include, include_text(users).encode())
        _replace(self.directory / "users.json", plain)


def new_pair() -> tuple[str, str]:
    """A user's seed and public key, as NATS writes them."""
    raw = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
    pair = nkeys.from_seed(bytearray(raw))  # type: ignore[no-untyped-call]
    try:
        return bytes(raw).decode(), pair.public_key.decode()
    finally:
        pair.wipe()


def include_text(users: list[User]) -> str:
    """The ``authorization`` block for ``nats.conf``."""
    blocks = [_block(user) for user in users]
    return (
        "# Written by `dataplane keys`; do not edit. Who may use the bus, and for what.\n"
        "authorization: {\n  users: [\n" + "".join(blocks) + "  ]\n}\n"
    )


def routes_text(servers: Sequence[str], secret: str) -> str:
    """What stands in ``cluster {}``: the servers' secret, and where they are.

    nats-server shows a secret only to the servers whose addresses bring it, so the addresses are
    here. One that finds its own among them leaves it out.
    """
    routes = "".join(f'  "nats-route://route:{secret}@{_address(one)}"\n' for one in servers)
    return (
        "# Written by `dataplane keys`; do not edit or show: who knows it is a server.\n"
        f'authorization: {{ user: route, password: "{secret}", timeout: 10 }}\n'
        f"routes: [\n{routes}]\n"
    )


def _address(server: str) -> str:
    named = _SERVER.fullmatch(server)
    return server if named and named[2] else f"{server}:{_ROUTES_PORT}"


def _block(user: User) -> str:
    said = permissions(user.role, user.name, user.durables)
    lines = [f"    # {user.role} {user.name}", "    {", f"      nkey: {user.nkey}"]
    lines.append("      permissions: {")
    for what in ("publish", "subscribe"):
        parts = ", ".join(f"{how}: {_list(said[what][how])}" for how in said[what])
        lines.append(f"        {what}: {{ {parts} }}")
    if "allow_responses" in said:
        lines.append('        allow_responses: { max: 1, expires: "1m" }')
    return "\n".join([*lines, "      }", "    }", ""])


def _list(subjects: list[str]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"


def _replace(file: Path, content: bytes, mode: int = 0o644) -> None:
    fresh = file.with_suffix(file.suffix + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(content)
    fresh.replace(file)


def summary(user: User) -> dict[str, Any]:
    """A user for people; nothing of it is secret."""
    return {
        "name": user.name,
        "role": user.role,
        "nkey": user.nkey,
        "durables": list(user.durables),
    }
