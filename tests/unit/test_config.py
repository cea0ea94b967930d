"""The configuration: where values come from, and that a wrong one is refused by name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dataplane.config import TEMPLATE, ConfigError, DataPlaneConfig, default_node
from streams.identity import Ownership
from streams.values import Role, Transport, is_token

#: The names the project's API reference gives.
PROMISED = {
    "manifest_refresh_interval": 60.0,
    "min_replication_factor": 3,
    "max_concurrent_syncs": 5,
    "default_bandwidth_limit_mbps": 100,
    "s3_enabled": False,
    "s3_bucket": "",
    "s3_sync_interval": 3600.0,
    "large_file_threshold_mb": 100,
    "transport_timeout_seconds": 600.0,
    "max_retries": 3,
    "emit_completion_events": True,
    "chain_events": True,
}


def loaded(
    tmp_path: Path, text: str = "", environment: dict[str, str] | None = None, **arguments: Any
) -> DataPlaneConfig:
    """A configuration from a file of this text, an environment and arguments."""
    file = tmp_path / "dataplane.toml"
    file.write_text(text)
    return DataPlaneConfig.load(file, environment=environment or {}, **arguments)


# Where values come from


def test_names_and_defaults_are_those_of_the_reference() -> None:
    """Who wrote against the reference finds what it says."""
    config = DataPlaneConfig.load(environment={})
    assert {name: getattr(config, name) for name in PROMISED} == PROMISED


def test_file_is_overridden_by_the_environment_and_that_by_arguments(tmp_path: Path) -> None:
    """Each field from the strongest that names it."""
    text = "max_retries = 1\nmax_in_flight = 1\nmax_concurrent_syncs = 1\n"
    environment = {"DATAPLANE_MAX_RETRIES": "2", "DATAPLANE_MAX_IN_FLIGHT": "2"}
    config = loaded(tmp_path, text, environment, max_retries=3)
    assert (config.max_retries, config.max_in_flight, config.max_concurrent_syncs) == (3, 2, 1)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", True),
        ('http_tls_ca = "ca.pem"', False),
        ('http_tls_cert = "node.pem"\nhttp_tls_key = "node.key"', False),
        ('http_tls_ca = "ca.pem"\nhttp_plain_too = true', True),
    ],
)
def test_who_is_told_of_tls_uses_nothing_else_unless_told(
    tmp_path: Path, text: str, plain: bool
) -> None:
    """Of an authority, or of a certificate of its own."""
    assert loaded(tmp_path, text).http_plain is plain


def test_argument_that_is_none_was_not_given(tmp_path: Path) -> None:
    """An option that was left out on the command line overrides nothing."""
    assert loaded(tmp_path, 'node = "gpu-7"', node=None).node == "gpu-7"


def test_file_is_found_by_the_environment(tmp_path: Path) -> None:
    """`DATAPLANE_CONFIG` names it, and an argument outranks that."""
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("max_retries = 7")
    given.write_text("max_retries = 8")
    environment = {"DATAPLANE_CONFIG": str(named)}
    assert DataPlaneConfig.load(environment=environment).max_retries == 7
    assert DataPlaneConfig.load(given, environment=environment).max_retries == 8


def test_no_file_is_no_error_unless_it_was_named(tmp_path: Path) -> None:
    """Defaults do without one; a name that leads nowhere is a mistake."""
    nothing = tmp_path / "nothing.toml"
    assert DataPlaneConfig.load(environment={"DATAPLANE_CONFIG": str(nothing)}).max_retries == 3
    with pytest.raises(ConfigError, match=f"{nothing}: no such file"):
        DataPlaneConfig.load(nothing, environment={})


def test_environment_says_lists_numbers_paths_and_truth_as_text(tmp_path: Path) -> None:
    """An environment has nothing but strings."""
    config = loaded(
        tmp_path,
        "",
        {
            "DATAPLANE_ROLES": "training, storage",
            "DATAPLANE_EXCLUDE_HOSTS": "",
            "DATAPLANE_TRANSPORTS": "http",
            "DATAPLANE_DATA_DIR": "/somewhere/else",
            "DATAPLANE_SWEEP_INTERVAL": "1.5",
            "DATAPLANE_CHAIN_EVENTS": "false",
            "DATAPLANE_HTTP_PORT": "8770",
            "UNRELATED": "x",
        },
    )
    assert config.roles == (Role.TRAINING, Role.STORAGE)
    assert config.exclude_hosts == ()
    assert config.transports == (Transport.HTTP_FETCH,)
    assert config.data_dir == Path("/somewhere/else")
    assert (config.sweep_interval, config.chain_events, config.http_port) == (1.5, False, 8770)


def test_home_directory_is_understood(tmp_path: Path) -> None:
    """`~/data` is not a directory called `~`."""
    assert loaded(tmp_path, 'data_dir = "~/data"').data_dir == Path.home() / "data"


def test_path_rules_are_read_from_the_file(tmp_path: Path) -> None:
    """Which glob is which is policy, in the configuration."""
    config = loaded(tmp_path, '[path_rules]\nglobs = [["**/*.db", "merged"]]\n')
    assert config.path_rules.ownership("games/x.db") is Ownership.MERGED
    assert config.policy().paths == config.path_rules


# What is wrong, and what it may be


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("max_retires = 3", ["'max_retires'", "max_retries"]),
        ("max_retries = -1", ["$.max_retries", ">= 0"]),
        ("max_concurrent_syncs = 0", ["$.max_concurrent_syncs", ">= 1"]),
        ('max_retries = "many"', ["$.max_retries", "int"]),
        ("sweep_interval = 0", ["$.sweep_interval", "> 0"]),
        ("http_port = 70000", ["$.http_port", "65535"]),
        ("replicas = 6", ["$.replicas", "<= 5"]),
        (
            'roles = ["trainer"]',
            ["$.roles[0]", "'trainer'", "training, selfplay, coordinator, storage"],
        ),
        ('traits = ["spot"]', ["$.traits[0]", "ephemeral", "nat_blocked", "external_storage"]),
        ('transports = ["ftp"]', ["$.transports[0]", "p2p", "http", "rsync", "s3", "base64"]),
        ('node = "gpu 7"', ["node 'gpu 7'", "1 to 64 of A-Z a-z 0-9 _ -"]),
        ('node = ""', ["node ''"]),
        ("data_dir = 7", ["$.data_dir", "path"]),
        ("s3_enabled = true", ["s3_enabled needs s3_bucket"]),
        ('consolidate_to = "games/all.db"', ["consolidate_to 'games/all.db'", "{config}"]),
        ('consolidate_to = "../{config}.db"', ["consolidate_to", "below the data directory"]),
        ('http_tls_cert = "node.pem"', ["http_tls_cert", "http_tls_key"]),
        ('http_advertise = "10.0.0.7:8770"', ["http_advertise '10.0.0.7:8770'", "http://10.0.0.7"]),
        (
            'http_advertise = "http://a:1"\nhttp_tls_cert = "c"\nhttp_tls_key = "k"',
            ["http_advertise 'http://a:1'", "https://", "http_tls_cert is set"],
        ),
        (
            'http_advertise = "http://a:1"\nhttp_tls_ca = "ca"',
            ["http_advertise 'http://a:1'", "https://", "http_tls_ca is set"],
        ),
        ('s3_prefix = "/a"', ["s3_prefix", "A-Za-z0-9_-"]),
        ("log_max_age_seconds = 604800.0", ["log_max_age_seconds needs archive"]),
        ('log_max_age_seconds = 60.0\narchive = "a"', ["log_max_age_seconds", "0, or at least"]),
        ("log_max_age_seconds = -1.0", ["log_max_age_seconds", "0"]),
        ('otel_endpoint = "collector:4318"', ["otel_endpoint", "file:PATH", "http://"]),
        ('path_rules = {globs = [["**", "mine"]]}', ["$.path_rules.globs[0][1]", "'mine'"]),
        ("max_retries = \nnode = 'a'", ["line 1"]),
        ("max_retries = 1\nmax_retries = 2\n", ["line 2"]),
    ],
)
def test_wrong_value_is_refused_with_its_field_and_what_it_may_be(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    """The operator reads the file, the field, and what to write instead."""
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, text)
    for name in [str(tmp_path / "dataplane.toml"), *names]:
        assert name in str(refused.value)


def test_address_that_others_are_told_may_be_plain_where_files_move_plain(tmp_path: Path) -> None:
    """Without TLS, and while a cluster is changed over, before this node serves by it."""
    plain = 'http_advertise = "http://a:1"\n'
    for more in ("", 'http_tls_ca = "ca"\nhttp_plain_too = true'):
        assert loaded(tmp_path, plain + more).http_advertise == "http://a:1"
    keys = 'http_advertise = "https://a:1/files"\nhttp_tls_cert = "c"\nhttp_tls_key = "k"'
    assert loaded(tmp_path, keys).http_advertise == "https://a:1/files"
    with pytest.raises(ConfigError, match=r"^DATAPLANE_HTTP_ADVERTISE: http_advertise 'a:1'"):
        loaded(tmp_path, keys, {"DATAPLANE_HTTP_ADVERTISE": "a:1"})


def test_wrong_value_of_the_environment_is_refused_by_field(tmp_path: Path) -> None:
    """The field is named, as the variable is its name in capitals."""
    with pytest.raises(ConfigError, match=re.escape("$.max_retries")):
        loaded(tmp_path, "", {"DATAPLANE_MAX_RETRIES": "many"})


def test_argument_nobody_knows_is_refused(tmp_path: Path) -> None:
    """Also from code: a misspelt keyword is not ignored."""
    with pytest.raises(ConfigError, match="unknown field 'max_retires'"):
        loaded(tmp_path, max_retires=1)


# What follows from it


def test_default_node_can_always_stand_in_a_subject() -> None:
    """Whatever the machine is called."""
    assert is_token(default_node())


def test_no_real_host_or_bucket_is_a_default() -> None:
    """A fresh installation talks to nobody but this machine."""
    config = DataPlaneConfig.load(environment={})
    assert (config.nats_url, config.s3_bucket, config.http_host) == ("", "", "127.0.0.1")
    assert config.servers == ["nats://127.0.0.1:4222"]


def test_bus_is_the_configured_one_or_the_one_that_runs_here(tmp_path: Path) -> None:
    """Several URLs, an embedded bus's own, or the default port."""
    several = loaded(tmp_path, 'nats_url = "nats://a:1, nats://b:2,"')
    assert several.servers == ["nats://a:1", "nats://b:2"]
    here = loaded(tmp_path, f'state_dir = "{tmp_path}"\nnats_port = 4333')
    assert here.servers == ["nats://127.0.0.1:4333"]
    here.bus_file.write_text("nats://127.0.0.1:5555\n")
    assert here.servers == ["nats://127.0.0.1:5555"]


def test_views_are_below_the_state_unless_they_are_put_elsewhere(tmp_path: Path) -> None:
    """`catalog_db_path` keeps its name."""
    assert loaded(tmp_path, 'state_dir = "/state"').views_dir == Path("/state/views")
    assert loaded(tmp_path, 'catalog_db_path = "/fast/views"').views_dir == Path("/fast/views")


def test_policy_obeys_the_configuration(tmp_path: Path) -> None:
    """Every number that decides is the configured one."""
    policy = loaded(
        tmp_path,
        """
        exclude_hosts = ["spot-*"]
        large_file_threshold_mb = 5
        transports = ["rsync", "http"]
        max_concurrent_syncs = 2
        max_in_flight = 9
        default_bandwidth_limit_mbps = 7
        max_retries = 1
        transport_timeout_seconds = 4.0
        answer_limit_seconds = 6.0
        chain_limit_seconds = 8.0
        """,
    ).policy()
    assert policy.exclusion.excludes("spot-1") and not policy.exclusion.excludes("gpu-1")
    assert policy.transports.large_file_mb == 5
    assert policy.transports.installed == (Transport.RSYNC, Transport.HTTP_FETCH)
    bandwidth, retries, chains = policy.bandwidth, policy.retries, policy.chains
    assert (bandwidth.max_per_node, bandwidth.max_total, bandwidth.sync_mbps) == (2, 9, 7.0)
    assert (retries.max_retries, retries.attempt_max_s, retries.grace_s) == (1, 4.0, 4.0)
    assert (chains.answer_limit_s, chains.limit_s) == (6.0, 8.0)


def test_policy_tables_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    """`[policy.retries]` is the place of every number; tables of names are added to."""
    policy = loaded(
        tmp_path,
        """
        [policy.retries]
        backoff_base_s = 5
        [policy.bandwidth.provider_mbps]
        "vast-*" = 20
        "lambda-*" = 70
        """,
    ).policy()
    assert (policy.retries.backoff_base_s, policy.retries.backoff_max_s) == (5.0, 30.0)
    assert policy.bandwidth.provider_mbps == {"vast-*": 20.0, "hetzner-*": 30.0, "lambda-*": 70.0}


def test_flat_name_and_policy_field_are_one_setting(tmp_path: Path) -> None:
    """Whoever reads either sees what was said under the other."""
    config = loaded(tmp_path, "[policy.retries]\nmax_retries = 7\n")
    assert (config.max_retries, config.policy().retries.max_retries) == (7, 7)
    config = loaded(tmp_path, "max_retries = 8\n")
    assert (config.max_retries, config.policy().retries.max_retries) == (8, 8)


def test_environment_outranks_the_policy_table_of_the_file(tmp_path: Path) -> None:
    """File, environment, arguments: the later word counts, whatever it is called."""
    text = "[policy.retries]\nmax_retries = 7\n"
    assert loaded(tmp_path, text, {"DATAPLANE_MAX_RETRIES": "1"}).policy().retries.max_retries == 1
    assert loaded(tmp_path, text, max_retries=2).policy().retries.max_retries == 2


def test_environment_sets_any_field_of_the_policy(tmp_path: Path) -> None:
    """Double underscores are the dots of the tables; lists are comma separated."""
    environment = {
        "DATAPLANE_POLICY__RETRIES__BACKOFF_BASE_S": "9",
        "DATAPLANE_POLICY__EXCLUSION__EXCLUDE_HOSTS": "a-*, b",
    }
    policy = loaded(tmp_path, "policy.retries.backoff_base_s = 5", environment).policy()
    assert policy.retries.backoff_base_s == 9.0
    assert policy.exclusion.exclude_hosts == ("a-*", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "max_retries = 1\n[policy.retries]\nmax_retries = 1",
            ["policy.retries.max_retries", "once"],
        ),
        ("[policy.retries]\nretry = 1", ["policy.retries: unknown field 'retry'", "max_retries"]),
        ("[policy.pace]\nx = 1", ["policy: unknown field 'pace'", "bandwidth"]),
        ("[policy.bandwith]\nx = 1", ["unknown field 'bandwith'; did you mean 'bandwidth'?"]),
        ("nodde = 'x'", ["unknown field 'nodde'; did you mean 'node'?"]),
        ("[policy.disk]\ncleanup_from = 85", ["policy.disk.cleanup_from", "<= 1.0"]),
        ('[policy.transports]\nsmall_file = ["p2p", "ftp"]', ["small_file[1]", "'ftp'", "base64"]),
        ("[policy.bandwidth.class_weights]\nurgent = 2", ["class_weights.urgent", "critical"]),
        ("[policy.bandwidth]\nprovider_mbps = 3", ["policy.bandwidth.provider_mbps", "a table"]),
        ("policy = 3", ["policy", "[policy.retries]"]),
    ],
)
def test_wrong_policy_names_the_field_and_what_it_may_be(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    """Who wrote it can mend it from the message alone."""
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, text)
    for word in (*words, "dataplane.toml"):
        assert word in str(error.value)


@pytest.mark.parametrize("field", ["chain_events", "emit_completion_events"])
def test_announcements_are_switched_off_by_either_name(tmp_path: Path, field: str) -> None:
    """Both names of the reference mean it."""
    assert loaded(tmp_path).policy().chains.announce
    assert not loaded(tmp_path, f"{field} = false").policy().chains.announce


# The template


def uncommented(text: str) -> str:
    """The template with every setting in force and every explanation still a comment."""
    return re.sub(r"^# ([\w.]+ = )", r"\1", text, flags=re.MULTILINE)


def test_template_is_a_configuration_as_it_is(tmp_path: Path) -> None:
    """A fresh file changes nothing."""
    assert loaded(tmp_path, TEMPLATE.replace("{node}", "gpu-7")) == loaded(tmp_path)


def test_template_parses_when_uncommented_and_shows_the_defaults(tmp_path: Path) -> None:
    """Every line can be used as it stands; only node and bus are this machine's own."""
    text = uncommented(TEMPLATE.replace("{node}", "gpu-7"))
    values = tomllib.loads(text)
    assert len(values) > 15
    config = loaded(tmp_path, text)
    assert config.node == "gpu-7"
    defaults = DataPlaneConfig(node="gpu-7", nats_url="nats://10.0.0.1:4222")
    assert config.policy() == defaults.policy()
    config.policy_tables = {}
    assert msgspec.structs.asdict(config) == msgspec.structs.asdict(defaults)


def test_what_the_template_shows_of_consolidation_can_be_set(tmp_path: Path) -> None:
    """Its example is for copying."""
    (shown,) = re.findall(r'^# consolidate_to .*?# ("[^"]+")', TEMPLATE, re.MULTILINE)
    assert loaded(tmp_path, f"consolidate_to = {shown}").consolidate_to.endswith("{config}.db")
    assert "{{" not in TEMPLATE


def test_no_node_may_be_called_like_the_bucket(tmp_path: Path) -> None:
    """In the catalog ``s3`` is the bucket: a node of that name would make its copies ambiguous."""
    with pytest.raises(ConfigError, match="node 's3'"):
        loaded(tmp_path, 'node = "s3"')
