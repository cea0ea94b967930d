"""Commands about what decides: the policy as it is in force, checked, and put in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from dataplane.cli import show
from dataplane.cli.app import WHY, Json, app, arguments, config_of
from dataplane.config import CONFIG_FILE, ConfigError, DataPlaneConfig, policy_origins
from dataplane.policy import Policy
from dataplane.policy.reading import TRIGGERS, as_tables, leaves
from dataplane.policy.telling import rows_of_rules, sentences

policy_app = typer.Typer(no_args_is_help=True, help="What goes where and why, as data.")
app.add_typer(policy_app, name="policy", rich_help_panel=WHY)
Trigger = Annotated[str, typer.Argument(metavar="[EVENT]", help="Such as SELFPLAY_COMPLETE.")]


@policy_app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="What is to be checked.")] = Path(CONFIG_FILE),
    as_json: Json = False,
) -> None:
    """Read a configuration as a daemon would. Exit status 2 with the field that is wrong."""
    config = DataPlaneConfig.load(file, environment={})
    rules = config.policy().placement.rules
    enabled = sum(rule.enabled for rule in rules.values())
    if as_json:
        show.print_json({"file": str(file), "valid": True, "rules": enabled})
    else:
        show.console.print(f"{file} is valid: {enabled} rules", highlight=False)


@policy_app.command("show")
def show_policy(as_json: Json = False) -> None:
    """Print the policy in force as TOML, with where each value came from."""
    config = config_of()
    origins = policy_origins(arguments.get("path"), config.policy())
    tables = as_tables(config.policy())
    if as_json:
        fields = [
            {"field": ".".join(path), "value": value, "from": origins.get(path, "default")}
            for path, value in leaves(tables)
        ]
        show.print_json({"policy": tables, "fields": fields})
        return
    for line in as_toml(tables, origins):
        show.console.print(Text(line), soft_wrap=True)


@policy_app.command("explain")
def explain_policy(event: Trigger = "", as_json: Json = False) -> None:
    """Say in words what each trigger moves, from where, to whom and how."""
    if event and event not in TRIGGERS:
        raise ConfigError(f"EVENT {event!r} is none of: {', '.join(TRIGGERS)}")
    policy: Policy = config_of().policy()
    if as_json:
        show.print_json(rows_of_rules(policy, event))
        return
    for line in sentences(policy, event):
        show.console.print(Text(line), soft_wrap=True)


def as_toml(tables: dict[str, Any], origins: dict[tuple[str, ...], str]) -> list[str]:
    """The tables as lines of TOML, each value with its origin."""
    by_table: dict[tuple[str, ...], list[str]] = {}
    for path, value in leaves(tables):
        if value is not None:
            written = json.dumps(value, ensure_ascii=False)
            line = f"{_key(path[-1])} = {written}  # {origins.get(path, 'default')}"
            by_table.setdefault(path[:-1], []).append(line)
    lines: list[str] = []
    for table, settings in by_table.items():
        lines += [f"[{'.'.join(map(_key, ('policy', *table)))}]", *settings, ""]
    return lines[:-1]


def _key(name: str) -> str:
    plain = name.replace("_", "").replace("-", "")
    return name if plain.isalnum() and plain.isascii() else json.dumps(name)
