"""The ``dataplane`` command itself: options that every command takes, errors, exit statuses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from adapters.errors import Refused, TransportError, Unreachable
from dataplane.catalog import Catalog
from dataplane.cli import show
from dataplane.config import CONFIG_FILE, ConfigError, DataPlaneConfig
from dataplane.logs import JsonFormatter, PlainFormatter, protect, redacted
from projections.cluster import ClusterView
from projections.store import StoreError
from streams.kept import FileUnreadable
from streams.log import LogError, LogUnavailable, PermissionDenied
from streams.micro import ServiceRefusal
from streams.values import DataType

#: What each exit status means, for every command.
EXIT_STATUS = {
    0: "yes, or done",
    1: "no: it is not so, not well, failed, or did not end in time",
    2: "the call, the configuration or a file it names is wrong; the text says which word",
    3: "nobody could be asked: bus, views, bucket or address are out of reach or refuse",
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Where the cluster's data is, where it should go, and what became of it.",
    epilog="Exit status: " + "; ".join(f"{code} {what}" for code, what in EXIT_STATUS.items()),
)
#: What `--help` calls the groups of commands.
RUN = "Run it"
SAY = "Say and ask"
LOOK = "See what is"
WHY = "Ask why"
BACK = "Look back"
SAFE = "Keep it safe"

Json = Annotated[bool, typer.Option("--json", help="JSON for programs instead of tables.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help=f"Default: {CONFIG_FILE}.")]
Nats = Annotated[str | None, typer.Option("--nats", help="URL(s) of the bus.")]
Node = Annotated[str | None, typer.Option("--node", help="This node's name.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="What is watched and received.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Log, views, outbox.")]
TypeOption = Annotated[DataType | None, typer.Option("--type", help="Only this type of data.")]

LOG_JSON = "DATAPLANE_LOG_JSON"
From = Annotated[
    str,
    typer.Option("--from", help="nats, an archive (directory or s3://bucket/prefix), or a file."),
]

arguments: dict[str, Any] = {}


@app.callback()
def common(
    config: ConfigOption = None,
    state_dir: StateDir = None,
    nats: Nats = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", envvar=LOG_JSON, help="Log JSON lines.")
    ] = False,
) -> None:
    """Options for every command; each can also stand in the configuration."""
    arguments.update(path=config, state_dir=state_dir, nats_url=nats)
    if log_json:
        # For the children of `up`, too.
        os.environ[LOG_JSON] = "1"
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, handlers=[_handler(log_json)]
    )
    for noisy in ("aiohttp.access", "watchfiles.main", "asyncio", "asyncssh", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _handler(log_json: bool) -> logging.Handler:
    handler: logging.Handler
    if log_json:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
    else:
        handler = RichHandler(console=show.errors, show_path=False)
        handler.setFormatter(PlainFormatter("%(name)s: %(message)s"))
    return handler


def config_of(**more: Any) -> DataPlaneConfig:
    given = {name: value for name, value in more.items() if value is not None}
    config = DataPlaneConfig.load(**{**arguments, **given})
    protect(config.secrets())
    return config


@contextlib.contextmanager
def open_catalog() -> Iterator[Catalog]:
    """The views on this machine, for a command."""
    catalog = Catalog(config_of())
    try:
        yield catalog
    finally:
        catalog.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a command's asynchronous part."""
    return asyncio.run(work)


def check_joined(view: ClusterView, node: str, what: str = "NODE") -> None:
    """Raises ConfigError, naming those that did, unless such a node ever joined."""
    if view.node(node) is None:
        known = ", ".join(row.name for row in view.nodes()) or "none"
        raise ConfigError(f"{what} {node!r} never joined; known: {known}")


#: The first that fits counts.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, 2),
    (ServiceRefusal, 2),
    (FileUnreadable, 2),
    (FileNotFoundError, 2),
    (FileExistsError, 2),
    (IsADirectoryError, 2),
    (NotADirectoryError, 2),
    (PermissionError, 2),
    (PermissionDenied, 3),
    (LogUnavailable, 3),
    (StoreError, 3),
    (Unreachable, 3),
    (Refused, 3),
    (LogError, 1),
    (TimeoutError, 1),
    (OSError, 3),
    (TransportError, 1),
    (ValueError, 2),
)


def main() -> None:
    """Run the command; what goes wrong for a known reason is one line and a status."""
    try:
        app()
    except tuple(kind for kind, _ in _STATUS) as error:
        text = redacted(_said_by(error))
        show.errors.print(f"dataplane: {text}", style="red", highlight=False, markup=False)
        raise SystemExit(next(code for kind, code in _STATUS if isinstance(error, kind))) from None


def _said_by(error: Exception) -> str:
    """An error in words; the system's without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error) or type(error).__name__
