"""Commands about who may use the bus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dataplane.cli import show
from dataplane.cli.app import SAFE, Json, app
from dataplane.config import ConfigError
from dataplane.keys import SERVERS, KeyStore, User, summary
from streams.permissions import BusRole

keys_app = typer.Typer(no_args_is_help=True, help="Who may use the bus, and for what.")
app.add_typer(keys_app, name="keys", rich_help_panel=SAFE)
Directory = Annotated[Path, typer.Option("--dir", help="Where the keys are.")]
Durables = Annotated[
    str, typer.Option(help="Durable subscriptions it may make, comma separated: exporter,…")
]
Servers = Annotated[
    str, typer.Option(help="The servers of the bus, comma separated: host or host:port of routes")
]
_HERE = Path("keys")
_SERVERS = ",".join(SERVERS)


@keys_app.command("init")
def init(directory: Directory = _HERE, servers: Servers = _SERVERS) -> None:
    """Make the directory of keys, with that of the coordinators and the secret of the servers."""
    store = KeyStore(directory)
    _told(store, store.init(servers=_names(servers)))
    show.console.print(
        f'in nats.conf: include "{store.include}"; then: nats-server --signal reload'
    )
    _told_of_routes(store)


@keys_app.command("refresh")
def refresh(directory: Directory = _HERE) -> None:
    """Write what nats-server reads anew for the same keys: after an upgrade, which may ask more."""
    store = KeyStore(directory)
    users = store.refresh()
    show.console.print(
        f"{store.include} is what {len(users)} keys may do as of this version; bring it to every "
        "server, and reload nats-server"
    )
    _told_of_routes(store)


@keys_app.command("routes")
def routes(
    servers: Annotated[
        list[str], typer.Argument(help="Every server of the bus: host or host:port of routes.")
    ],
    directory: Directory = _HERE,
) -> None:
    """Which servers are one bus: they let in as servers only who knows their secret."""
    store = KeyStore(directory)
    store.users()
    store.join(servers)
    _told_of_routes(store)


@keys_app.command("add-node")
def add_node(name: str, directory: Directory = _HERE, durables: Durables = "") -> None:
    """A key for a node: it speaks under its own name alone, and does only its own tasks."""
    store = KeyStore(directory)
    _told(store, store.add(name, BusRole.NODE, _names(durables)))


@keys_app.command("add-observer")
def add_observer(name: str, directory: Directory = _HERE, durables: Durables = "") -> None:
    """A key that reads and asks, and says nothing."""
    store = KeyStore(directory)
    _told(store, store.add(name, BusRole.OBSERVER, _names(durables)))


@keys_app.command("revoke")
def revoke(name: str, directory: Directory = _HERE) -> None:
    """Take a key away. It is refused from the server's next reload on."""
    store = KeyStore(directory)
    gone = store.revoke(name)
    show.console.print(f"{gone.role} {gone.name} is out; reload nats-server now")


@keys_app.command("ls")
def ls(directory: Directory = _HERE, as_json: Json = False) -> None:
    """Who has a key."""
    rows = [summary(user) for user in KeyStore(directory).users()]
    show.emit(rows, ["name", "role", "nkey", "durables"], as_json=as_json, empty="nobody")


@keys_app.command("seal")
def seal(path: Annotated[Path, typer.Argument(help="A new file for the key.")]) -> None:
    """A key that seals what a node stores in the bucket; set s3_encryption_key_file to it."""
    # Only here, for it takes long to load.
    from adapters.s3.sealing import Sealer

    try:
        Sealer.make_key(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    show.console.print(
        f"a new key is in {path}: set s3_encryption_key_file to it, and keep a copy elsewhere, "
        "but not in the bucket: what is sealed can't be opened without it"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _told(store: KeyStore, user: User) -> None:
    seed = store.seed_file(user.name)
    # Whoever may listen to nothing but its own answers must ask under its own name.
    named = "" if user.role == "coordinator" else f", and node to {user.name},"
    show.console.print(
        f"{user.role} {user.name}: its key is in {seed}; bring it to its machine, set nats_nkey "
        f"to it{named} there, delete it here, and reload nats-server"
    )


def _told_of_routes(store: KeyStore) -> None:
    show.console.print(
        f'several servers: in cluster {{}} of each include "{store.routes_include}", which is for '
        "them alone: who has it can be a server of the bus"
    )
