"""`DataPlaneConfig`: from ``dataplane.toml``, then the environment, then arguments.

Every wrong value is refused with the name of the field and what it may be. No real host or bucket
is a default.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from dataplane.policy import Policy
from dataplane.policy.limits import Prefix
from dataplane.policy.reading import PolicyError, laid_over, leaves
from dataplane.typos import meant
from streams.identity import PathRules, escapes
from streams.topology import DUPLICATE_WINDOW_S
from streams.values import S3_NODE, Count, Role, Trait, Transport, is_token

CONFIG_FILE = "dataplane.toml"
ENVIRONMENT_PREFIX = "DATAPLANE_"
_Positive = Annotated[float, Meta(gt=0)]
_NotNegative = Annotated[float, Meta(ge=0)]
_Port = Annotated[int, Meta(ge=0, le=65535)]


class ConfigError(ValueError):
    """A configuration that can't be used; the text names the field and what it may be."""


def default_node() -> str:
    """This machine's name, made fit for a subject."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:64].strip("-") or "node"


class DataPlaneConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All settings of a process of the data plane. Field names are those of ``dataplane.toml``."""

    # Who and where
    node: str = msgspec.field(default_factory=default_node)
    #: URLs of the bus, comma separated; "" starts one on this machine.
    nats_url: str = ""
    #: What this node holds and receives.
    data_dir: Path = Path("data")
    #: Log, views, outbox: everything of ours that is not data.
    state_dir: Path = Path(".dataplane")
    #: Where the views are; "" means ``state_dir/views``.
    catalog_db_path: Path = Path()
    roles: tuple[Role, ...] = (Role.TRAINING, Role.SELFPLAY, Role.STORAGE)
    traits: tuple[Trait, ...] = ()
    provider: str = ""
    region: str = ""
    nfs_group: str = ""
    #: The most that this node receives or sends in all, in Mbit/s; 0 means no limit of its own.
    bandwidth_limit_mbps: Count = 0

    # The bus
    nats_port: _Port = 4222
    nats_user: str = ""
    nats_password: str = ""
    nats_credentials: str = ""
    #: File with this process's key, as `dataplane keys` makes it.
    nats_nkey: str = ""
    #: PEM files for a bus with TLS: who signs its certificate, and our own where it asks for one.
    nats_tls_ca: str = ""
    nats_tls_cert: str = ""
    nats_tls_key: str = ""
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1

    # Keeping the log and the views
    #: Where the log is archived: a directory or ``s3://bucket/prefix``; "" for nowhere.
    archive: str = ""
    archive_interval: _Positive = 300.0
    #: What is older than this and in the archive, proven, is removed from the log; 0 keeps all.
    log_max_age_seconds: _NotNegative = 0.0
    #: A copy of the views is kept every so many events; 0 keeps none. To go to a moment of the
    #: past costs about half a second for 10,000 events, and as much to unpack a copy of a million.
    snapshot_every_events: Annotated[int, Meta(ge=0)] = 10_000
    #: The disk that older copies may take; what goes beyond it is thinned out evenly.
    snapshot_budget_mb: Annotated[int, Meta(ge=0)] = 5_000

    # Serving files
    http_host: str = "127.0.0.1"
    #: 0 picks a free port and keeps to it over restarts.
    http_port: _Port = 0
    #: What other nodes should use, such as ``http://10.0.0.7:8770``, or ``https://…`` where this
    #: one serves by TLS; "" is made of host and port.
    http_advertise: str = ""
    #: Certificate and key of this node's file server, and the authority that others' must be of;
    #: PEM. "" serves files by plain HTTP, and trusts whom this machine trusts.
    http_tls_cert: str = ""
    http_tls_key: str = ""
    http_tls_ca: str = ""
    #: Whether a node that is told of TLS uses addresses without it, too: while a cluster is changed
    #: over, and some nodes serve by it and others not yet.
    http_plain_too: bool = False

    # The page of a coordinator
    web_enabled: bool = True
    #: Anything but loopback needs a token.
    web_host: str = "127.0.0.1"
    #: A free one where it is taken; 0 picks a free one.
    web_port: _Port = 8780
    #: "" makes one where it is needed, in ``state_dir/web_token``.
    web_token: str = ""
    #: Certificate and key files, PEM; "" means plain HTTP.
    web_tls_cert: str = ""
    web_tls_key: str = ""

    # Reaching this node by SSH; "" where it can't be
    ssh_host: str = ""
    ssh_port: Annotated[int, Meta(ge=1, le=65535)] = 22
    ssh_user: str = ""
    #: What this node's own SSH client trusts and shows; None, or "", means the user's own files.
    ssh_known_hosts: Path | None = None
    ssh_identity: Path | None = None

    # Traces
    #: Where a coordinator that leads sends the spans of ended chains: the URL of an OpenTelemetry
    #: collector, or ``file:PATH`` for JSON Lines; "" sends none.
    otel_endpoint: str = ""

    # Catalog
    manifest_refresh_interval: _Positive = 60.0

    # Merging
    #: Where this node merges the complete games of all databases it holds, below its data
    #: directory, with ``{config}`` for the configuration; "" for nowhere.
    consolidate_to: str = ""

    # Scrubbing
    #: Every replica is read again within this many seconds, so that rot is found; 0: never.
    scrub_interval: _NotNegative = 14 * 86_400.0
    #: Mbit/s that reading again may take of this node's disks.
    scrub_limit_mbps: _Positive = 200.0

    # Sync
    min_replication_factor: Annotated[int, Meta(ge=1)] = 3
    #: Transfers at once from or to one node.
    max_concurrent_syncs: Annotated[int, Meta(ge=1)] = 5
    #: Transfers at once in the whole cluster.
    max_in_flight: Annotated[int, Meta(ge=1)] = 12
    #: Mbit/s of one transfer; 0 means unlimited.
    default_bandwidth_limit_mbps: _NotNegative = 100.0
    exclude_hosts: tuple[str, ...] = ()

    # S3
    s3_enabled: bool = False
    s3_bucket: str = ""
    #: What all keys in the bucket begin with, such as ``clusters/a``: several can share one.
    s3_prefix: Prefix = ""
    #: URL of the server, such as ``http://10.0.0.9:8333``; "" means Amazon's for the region.
    s3_endpoint: str = ""
    s3_region: str = ""
    #: A file with this node's key: what it stores is sealed with it. "" stores it as it is.
    s3_encryption_key_file: Path = Path()
    s3_sync_interval: _Positive = 3600.0
    #: How long an agent that is told to end goes on pushing to the bucket what it lacks; 0: it
    #: ends at once. Whoever stops it must wait for longer before he kills it.
    shutdown_push_seconds: _NotNegative = 8.0

    # Transports
    #: Those this installation may use; a node uses the ones it has, towards nodes that have them.
    transports: tuple[Transport, ...] = tuple(Transport)
    large_file_threshold_mb: Annotated[int, Meta(ge=1)] = 100
    transport_timeout_seconds: _Positive = 600.0
    stall_timeout_seconds: _Positive = 30.0
    max_retries: Annotated[int, Meta(ge=0)] = 3

    # Chains
    #: How long a node may owe what it holds without a word that it is still reading.
    answer_limit_seconds: _Positive = 60.0
    #: A chain older than this is said to be overdue.
    chain_limit_seconds: _Positive = 3600.0
    sweep_interval: _Positive = 5.0
    #: A node without a heartbeat for so long is taken out of planning until it is heard again.
    offline_after_seconds: _Positive = 300.0
    emit_completion_events: bool = True
    chain_events: bool = True

    path_rules: PathRules = PathRules()
    #: The ``[policy.…]`` tables as they stand; `policy` is what they make with the fields above.
    policy_tables: dict[str, Any] = msgspec.field(name="policy", default_factory=dict)

    @property
    def views_dir(self) -> Path:
        """Where the views are."""
        unset = self.catalog_db_path == Path()
        return self.state_dir / "views" if unset else self.catalog_db_path

    @property
    def snapshots_dir(self) -> Path:
        """Where copies of the views at earlier points are."""
        return self.views_dir / "snapshots"

    @property
    def servers(self) -> list[str]:
        """The URLs of the bus; those of the one running on this machine if none is configured."""
        said = self.nats_url or _read_if_there(self.bus_file)
        urls = [url.strip() for url in said.split(",") if url.strip()]
        return urls or [f"nats://127.0.0.1:{self.nats_port}"]

    @property
    def http_plain(self) -> bool:
        """Whether files may go to and come from nodes by an address without TLS."""
        return self.http_plain_too or not (self.http_tls_cert or self.http_tls_ca)

    def secrets(self) -> list[str]:
        """What of this must never be shown, logged or said."""
        urls = [*self.nats_url.split(","), self.otel_endpoint]
        in_urls = [urlsplit(url).password or "" for url in urls]
        return [secret for secret in (self.nats_password, self.web_token, *in_urls) if secret]

    def _bounded_wrongly(self) -> str:
        """Why the log can't be kept for that long only; "" if it can."""
        if not self.log_max_age_seconds:
            return ""
        if not self.archive:
            return "needs archive: nothing leaves the log that is not archived"
        if self.log_max_age_seconds < DUPLICATE_WINDOW_S:
            return (
                f"may be: 0, or at least {DUPLICATE_WINDOW_S:.0f}: for so long the log must know "
                "what was said to it"
            )
        return ""

    def _advertised_wrongly(self) -> str:
        """Why nobody could use the address that others are told; "" if they can."""
        said = self.http_advertise
        if said and not _FILE_URL.fullmatch(said):
            return "is no URL like http://10.0.0.7:8770 or https://…"
        if said.startswith("http:") and self.http_tls_cert:
            return "must begin with https://: http_tls_cert is set, and this node serves by TLS"
        if said.startswith("http:") and not self.http_plain:
            return "must begin with https://: http_tls_ca is set, and http_plain_too is off"
        return ""

    def __repr__(self) -> str:
        """All that differs from the defaults, without secrets."""
        shown = []
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if field.name in ("nats_url", "otel_endpoint") or value == field.default:
                continue
            secret = field.name in ("nats_password", "web_token")
            shown.append(f"{field.name}={'[secret]' if secret else repr(value)}")
        return f"DataPlaneConfig({', '.join(shown)})"

    @property
    def web_file(self) -> Path:
        """Where a coordinator writes the address of its page while it serves it."""
        return self.state_dir / "web_url"

    @property
    def bus_file(self) -> Path:
        """Where an embedded bus writes its URL while it runs."""
        return self.state_dir / "nats_url"

    def policy(self) -> Policy:
        """What decisions obey: the defaults, then these fields, then the policy tables."""
        flat = {name: getattr(self, name) for name in FLAT_NAMES}
        flat["chain_events"] = self.chain_events and self.emit_completion_events
        base = laid_over(Policy(paths=self.path_rules), _nested(flat))
        return laid_over(base, self.policy_tables)

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        *,
        environment: Mapping[str, str] = os.environ,
        **arguments: Any,
    ) -> DataPlaneConfig:
        """Read ``dataplane.toml`` (or `path`), then ``DATAPLANE_…``, then `arguments` but None.

        Raises ConfigError with the file or variable, the field and what it may be.
        """
        values: dict[str, Any] = {}
        file = path or Path(environment.get(f"{ENVIRONMENT_PREFIX}CONFIG", CONFIG_FILE))
        if file.exists():
            values |= _from_file(file)
        elif path is not None:
            raise ConfigError(f"{path}: no such file")
        said = _from_environment(environment)
        given = {name: value for name, value in arguments.items() if value is not None}
        said_by = {name: ENVIRONMENT_PREFIX + name.upper() for name in said if name != "policy"}
        said_by |= {name: _OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in given}
        where = str(file) if file.exists() else "configuration"
        return cls.from_values(over(over(values, said), given), where, said_by)

    @classmethod
    def from_values(
        cls, values: Mapping[str, Any], where: str = "", said_by: Mapping[str, str] | None = None
    ) -> DataPlaneConfig:
        """A configuration from field names and values. Raises ConfigError naming the field.

        It also names `where` the values are from; `said_by` has the fields that come from
        elsewhere: the variable or the option that says them.
        """
        said_by = said_by or {}
        known = {field.encode_name for field in msgspec.structs.fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{where}: unknown field {name!r}; {meant(name, 'fields', sorted(known))}"
                )
        try:
            config = msgspec.convert(dict(values), cls, strict=False, dec_hook=_decode_path)
        except msgspec.ValidationError as error:
            raise ConfigError(_refusal(error, values, where, said_by)) from None
        node = f"{said_by.get('node', where)}: node {config.node!r}"
        if not is_token(config.node):
            raise ConfigError(f"{node} must be 1 to 64 of A-Z a-z 0-9 _ -")
        if config.node == S3_NODE:
            raise ConfigError(f"{node} is what the bucket is called")
        for url in config.nats_url.split(","):
            if url.strip() and not _BUS_URL.fullmatch(url.strip()):
                raise ConfigError(
                    f"{said_by.get('nats_url', where)}: {url.rpartition('@')[2]!r} is no URL like "
                    "nats://10.0.0.1:4222 or tls://…; several are comma separated"
                )
        try:
            policy = config.policy()
        except PolicyError as error:
            raise ConfigError(f"{where}: {error}") from None
        # What a policy table says is what the flat name says, too.
        for name, (concern, field) in FLAT_NAMES.items():
            setattr(config, name, getattr(getattr(policy, concern), field))
        config.path_rules = policy.paths
        for name in ("ssh_known_hosts", "ssh_identity"):
            if getattr(config, name) == Path():
                setattr(config, name, None)
        if config.s3_enabled and not config.s3_bucket:
            raise ConfigError(f"{where}: s3_enabled needs s3_bucket")
        into = config.consolidate_to
        if into and ("{config}" not in into or not into.endswith(".db") or escapes(into)):
            raise ConfigError(
                f"{where}: consolidate_to {into!r} must be '' or a path below the data directory "
                "with {config} in it, such as games/canonical_{config}.db"
            )
        if bool(config.http_tls_cert) != bool(config.http_tls_key):
            raise ConfigError(f"{where}: http_tls_cert and http_tls_key need each other")
        if problem := config._advertised_wrongly():
            raise ConfigError(
                f"{said_by.get('http_advertise', where)}: "
                f"http_advertise {config.http_advertise!r} {problem}"
            )
        if problem := config._bounded_wrongly():
            raise ConfigError(f"{where}: log_max_age_seconds {problem}")
        if not re.fullmatch(r"|file:.+|https?://[^/].*", config.otel_endpoint):
            raise ConfigError(
                f"{where}: otel_endpoint may be: '', file:PATH, http://... or https://..."
            )
        return config


#: Settings of the flat form, and which field of the policy each of them is.
FLAT_NAMES: dict[str, tuple[str, str]] = {
    "exclude_hosts": ("exclusion", "exclude_hosts"),
    "min_replication_factor": ("replication", "minimum"),
    "max_concurrent_syncs": ("bandwidth", "max_per_node"),
    "max_in_flight": ("bandwidth", "max_total"),
    "default_bandwidth_limit_mbps": ("bandwidth", "sync_mbps"),
    "manifest_refresh_interval": ("schedule", "manifest_refresh_s"),
    "s3_enabled": ("s3", "enabled"),
    "s3_bucket": ("s3", "bucket"),
    "s3_prefix": ("s3", "prefix"),
    "s3_sync_interval": ("schedule", "s3_cycle_s"),
    "transports": ("transports", "installed"),
    "large_file_threshold_mb": ("transports", "large_file_mb"),
    "max_retries": ("retries", "max_retries"),
    "stall_timeout_seconds": ("retries", "stall_s"),
    "transport_timeout_seconds": ("retries", "attempt_max_s"),
    "answer_limit_seconds": ("chains", "answer_limit_s"),
    "chain_limit_seconds": ("chains", "limit_s"),
    "chain_events": ("chains", "announce"),
}


def policy_origins(
    path: Path | None, policy: Policy, environment: Mapping[str, str] = os.environ
) -> dict[tuple[str, ...], str]:
    """Where each field of a policy that is no default came from: the file or the variable."""
    file = path or Path(environment.get(f"{ENVIRONMENT_PREFIX}CONFIG", CONFIG_FILE))
    sources = [(_from_file(file) if file.exists() else {}, str(file))]
    sources.append((_from_environment(environment), "environment"))
    origins: dict[tuple[str, ...], str] = {}
    for values, source in sources:
        for name, place in FLAT_NAMES.items():
            if name in values:
                origins[place] = f"{source}: {name}"
        for at, _ in leaves(values.get("policy", {})):
            origins[at] = f"{source}: policy.{'.'.join(at)}"
    return origins


def over(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with what a later source says: its word counts under whichever name it is said."""
    tables = {name: dict(table) for name, table in values.get("policy", {}).items()}
    for name in later:
        concern, field = FLAT_NAMES.get(name, ("", ""))
        tables.get(concern, {}).pop(field, None)
    return {**values, **later, "policy": _merged(tables, later.get("policy", {}))}


def _merged(tables: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, those of `later` laid over the others."""
    merged = dict(tables)
    for name, value in later.items():
        before = merged.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _nested(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        concern, field = FLAT_NAMES[name]
        tables.setdefault(concern, {})[field] = value
    return tables


def _from_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    tables = values.get("policy", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise ConfigError(f"{file}: policy: expected tables such as [policy.retries]")
    for name, (concern, field) in FLAT_NAMES.items():
        if name in values and field in tables.get(concern, {}):
            twice = f"{name} and policy.{concern}.{field} are one setting"
            raise ConfigError(f"{file}: {twice}; say it once")
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """``DATAPLANE_MAX_RETRIES=5`` sets ``max_retries``; lists are comma separated.

    ``DATAPLANE_POLICY__DISK__CLEANUP_FROM=0.8`` sets ``policy.disk.cleanup_from``.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(DataPlaneConfig):
        text = environment.get(ENVIRONMENT_PREFIX + field.name.upper())
        if text is None or field.name in ("path_rules", "policy_tables"):
            continue
        is_list = str(field.type).startswith("tuple")
        values[field.name] = [t.strip() for t in text.split(",") if t.strip()] if is_list else text
    for name in sorted(environment):
        if name.startswith(f"{ENVIRONMENT_PREFIX}POLICY__"):
            *tables, field_name = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            table = values
            for part in tables:
                table = table.setdefault(part, {})
            table[field_name] = environment[name]
    return values


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    # Not a ValidationError: only other errors get the field's place from msgspec.
    raise ValueError(f"Expected `path`, got `{type(value).__name__}`")


def _read_if_there(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _refusal(
    error: msgspec.ValidationError,
    values: Mapping[str, Any],
    where: str,
    said_by: Mapping[str, str],
) -> str:
    """What is wrong with which field, who said it, and what it may be."""
    found = re.search(r"\$\.([a-z0-9_]+)", str(error))
    name = found[1] if found else ""
    hint = f"; {name} may be: {', '.join(_ENUMERATED[name])}" if name in _ENUMERATED else ""
    if name in said_by:
        # Whoever typed it at a prompt finds it by what he typed.
        hint = f", it is {shown(name, values[name])}{hint}"
    return f"{said_by.get(name, where)}: {error}{hint}"


def shown(name: str, value: Any) -> str:
    """A field's value for an error's text, where it is no secret."""
    if name in _SECRET:
        return "[secret]"
    return repr(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


#: Options that are not called as their field is.
_OPTIONS = {"nats_url": "--nats", "path": "--config"}
_ENUMERATED = {"roles": Role, "traits": Trait, "transports": Transport}
_SECRET = ("nats_password", "web_token")
_BUS_URL = re.compile(r"(nats|tls|ws|wss)://[^\s/]+(/\S*)?|[^\s/:]+:\d+")
_FILE_URL = re.compile(r"https?://[^\s/]+(/\S*)?")


TEMPLATE = """\
# dataplane.toml: the settings of this machine's data plane. Every line shows a default.
# The environment (DATAPLANE_NODE=...) overrides the file, arguments override both.

# node = "{node}"                # this machine's name: letters, digits, _ and -
# roles = ["training", "selfplay", "storage"]   # also: "coordinator"
# traits = []   # "ephemeral", "gpu", "nat_blocked", "external_storage", "skip_sync_receive"
# data_dir = "data"              # games, models and the like: what is watched, served and received
# state_dir = ".dataplane"       # log, views and outbox; views and outbox can be deleted
# bandwidth_limit_mbps = 0       # Mbit/s that this node receives or sends at most, in all; 0: any

# The bus. Without nats_url one is started on this machine and its log is kept in state_dir.
# nats_url = "nats://10.0.0.1:4222"
# nats_port = 4222
# nats_nkey = ""                 # this process's key, made by: dataplane keys
# nats_tls_ca = ""               # PEM files for a bus with TLS
# nats_tls_cert = ""
# nats_tls_key = ""
# replicas = 1                   # 3 on a cluster of three servers

# Keeping the log for ever, and the views of earlier times near at hand (dataplane at TIME ...).
# archive = ""                   # a directory or "s3://bucket/prefix"
# archive_interval = 300.0
# log_max_age_seconds = 0.0      # what is older, and archived, leaves the bus; 0: nothing does
# snapshot_every_events = 10000  # 0: no copies of the views
# snapshot_budget_mb = 5000      # about a hundred copies of the views of a million events

# Serving files to other nodes.
# http_host = "127.0.0.1"        # "0.0.0.0" to be reached from outside
# http_port = 0                  # 0: a free one, kept over restarts
# http_advertise = ""            # "http://10.0.0.7:8770" where others see another address
# http_tls_cert = ""             # PEM files; with them files are served by HTTPS
# http_tls_key = ""
# http_tls_ca = ""               # who must have signed what other nodes show; else the system's
# http_plain_too = false         # with those files, to use nodes without TLS, too, while you change

# The coordinator's page. Anything but loopback needs a token.
# web_enabled = true
# web_host = "127.0.0.1"
# web_port = 8780                # a free one where it is taken
# web_token = ""                 # made where it is needed, and kept in state_dir/web_token
# web_tls_cert = ""              # PEM files; with them the page is served by HTTPS
# web_tls_key = ""

# Traces: where the spans of ended chains go, by OpenTelemetry; "" for nowhere.
# otel_endpoint = ""             # "http://10.0.0.9:4318", or "file:spans.jsonl"

# Transports, in no particular order: which is tried first depends on the file.
# transports = ["p2p", "http", "rsync", "s3", "base64"]   # rsync, base64: to nodes with ssh_host
# ssh_host = ""                  # where others reach this node by SSH
# ssh_port = 22
# ssh_user = ""
# ssh_known_hosts = ""           # host keys of nodes that this one sends to by SSH; "": the user's
# ssh_identity = ""              # the private key that it shows them, mode 0600; "": the user's

# The bucket. Credentials come from the standard places of the AWS tools, never from here; agents
# store and fetch with them, coordinators prove what is there.
# s3_enabled = false
# s3_bucket = ""
# s3_prefix = ""                 # "clusters/a" where several clusters share the bucket
# s3_endpoint = ""               # "http://10.0.0.9:8333" for a server of one's own
# s3_region = ""
# shutdown_push_seconds = 8.0    # an agent that is told to end pushes for so long what it lacks
# s3_encryption_key_file = ""    # what this node stores is sealed with this key

# Merging.
# consolidate_to = ""            # "games/canonical_{config}.db": all complete games here, in one

# Scrubbing.
# scrub_interval = 1209600.0     # every replica is read again within this; 0: never
# scrub_limit_mbps = 200.0       # what reading again may take of the disks

# Sync.
# max_concurrent_syncs = 5       # transfers at once from or to one node
# max_in_flight = 12             # transfers at once in the cluster
# default_bandwidth_limit_mbps = 100   # of one transfer; 0 means unlimited
# max_retries = 3
# transport_timeout_seconds = 600.0    # the most one attempt may take
# exclude_hosts = []             # names or globs of nodes that never receive

# Chains.
# answer_limit_seconds = 60.0    # how long a node that reads nothing may owe what it holds
# chain_limit_seconds = 3600.0   # a chain older than this is said to be overdue
# sweep_interval = 5.0
# offline_after_seconds = 300.0  # without a heartbeat a node is taken out of planning

# What goes where and why is policy: `dataplane policy show` prints all of it, default by default.
# policy.retries.backoff_base_s = 2.0   # or as a table: [policy.retries]
"""
