"""Keys and certificates: the files that a configuration names, looked at before they are used.

One that can't be used is refused with the name of its setting and what to do, never with a number
alone; of one that others may read it is said. What is in them is shown nowhere.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dataplane.config import ConfigError, DataPlaneConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")
_OTHERS = 0o077


def bus_key(setting: str, name: str) -> Path | None:
    """The file that shows the bus who we are; None for "". Raises ConfigError."""
    return _readable(setting, Path(name).expanduser()) if name else None


def bus_tls(config: DataPlaneConfig) -> ssl.SSLContext | None:
    """How a bus with TLS is checked, and what we show it; None where nothing is configured.

    Raises ConfigError for files that can't be used.
    """
    if not (config.nats_tls_ca or config.nats_tls_cert):
        return None
    _authority("nats_tls_ca", config.nats_tls_ca)
    context = ssl.create_default_context(cafile=config.nats_tls_ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.nats_tls_cert:
        _pair(context, config, "nats_tls")
    return context


def look_at_agent_files(config: DataPlaneConfig) -> None:
    """Whether an agent can use what it serves, trusts and shows by. Raises ConfigError."""
    _authority("http_tls_ca", config.http_tls_ca)
    if config.http_tls_cert:
        _pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config, "http_tls")
    if config.ssh_known_hosts is not None:
        _readable("ssh_known_hosts", config.ssh_known_hosts)
    if config.ssh_identity is not None:
        _readable("ssh_identity", config.ssh_identity)
        if _seen_by_others(config.ssh_identity):
            # The ssh client takes no such key.
            raise ConfigError(f"ssh_identity: others may read {config.ssh_identity}: chmod 600 it")


def look_at_page_files(config: DataPlaneConfig) -> None:
    """Whether a coordinator can serve its page as configured. Raises ConfigError."""
    if config.web_enabled and config.web_tls_cert:
        _pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config, "web_tls")


def warn_of_open_keys(config: DataPlaneConfig) -> None:
    """Say which keys others on this machine may read."""
    for setting in ("nats_nkey", "nats_credentials", "nats_tls_key", "http_tls_key", "web_tls_key"):
        name = getattr(config, setting)
        if name and _seen_by_others(Path(name).expanduser()):
            logger.warning("%s: others may read %s: chmod 600 it", setting, name)


def _pair(context: ssl.SSLContext, config: DataPlaneConfig, settings: str) -> None:
    """Load a certificate and its key."""
    named = {
        setting: getattr(config, setting) for setting in (f"{settings}_cert", f"{settings}_key")
    }
    for setting, name in named.items():
        if name:
            _readable(setting, Path(name))
    certificate, key = named.values()
    both = " and ".join(f"{setting} {name}" for setting, name in named.items() if name)
    _loaded(
        f"{both}: no certificate and its key, in PEM",
        lambda: context.load_cert_chain(certificate, key or None),
    )


def _authority(setting: str, name: str) -> None:
    if name:
        _readable(setting, Path(name))
        _loaded(
            f"{setting} {name}: no certificate, in PEM",
            lambda: ssl.create_default_context(cafile=name),
        )


def _loaded(problem: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except ssl.SSLError as error:
        why = f" ({error.reason})" if error.reason else ""
        raise ConfigError(f"{problem}{why}") from error


def _readable(setting: str, path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ConfigError(f"{setting}: {path} can't be read: {error.strerror}") from error


def _seen_by_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & _OTHERS)
    except OSError:
        return False
