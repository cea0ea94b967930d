"""A policy from tables, and as tables again.

What is wrong is said with the path of the field and what it may be. Tables are laid over a policy:
what they do not name stays, in structs and in tables of names alike.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec

from dataplane.policy import Policy
from dataplane.policy.placement import AUTO, BY_NAME, SELECTORS
from dataplane.typos import meant
from streams.events import CHAIN_TRIGGERS, SweepDue, type_name
from streams.values import BOARDS, SweepKind, config_key_in

#: What a rule may answer: triggers by wire name, sweeps with their kind.
TRIGGERS = (
    *(type_name(trigger) for trigger in CHAIN_TRIGGERS if trigger is not SweepDue),
    *(f"{type_name(SweepDue)}/{kind}" for kind in SweepKind),
)


class PolicyError(ValueError):
    """Tables that make no policy; the text names the field and what it may be."""


def laid_over(base: Policy, tables: Mapping[str, Any], where: str = "policy") -> Policy:
    """`base` with what `tables` change; `where` begins the path of a field that is wrong.

    Raises PolicyError.
    """
    policy: Policy = _read(Policy, tables, where, base)
    for problem in _contradictions(policy):
        raise PolicyError(f"{where}.{problem}")
    return policy


def as_tables(policy: Policy) -> dict[str, Any]:
    """A policy as nested tables of plain values, whole; `laid_over` reads them back."""
    tables: dict[str, Any] = _plain(policy)
    return tables


def leaves(tables: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each setting as (path, value), where path is a tuple of names."""
    for name, value in tables.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _contradictions(policy: Policy) -> Iterator[str]:
    """What no single field shows: names that mean nothing here, limits in the wrong order."""
    placement, disk = policy.placement, policy.disk
    for name, rule in placement.rules.items():
        here = f"placement.rules.{name}"
        yield from _unknown(f"{here}.on", rule.on, TRIGGERS)
        yield from _unknown_selectors(f"{here}.to", rule.to)
        yield from _unknown(f"{here}.strategy", (rule.strategy,), (AUTO, *placement.strategies))
        if not rule.to:
            yield f"{here}.to: names nobody; may be: {', '.join(SELECTORS)}, name:<glob>"
    for name, strategy in placement.strategies.items():
        here = f"placement.strategies.{name}"
        yield from _unknown_selectors(f"{here}.also_to", strategy.also_to)
        yield from _unknown_selectors(f"{here}.collect_to", strategy.collect_to)
    for name in policy.quality.complete_from_moves:
        if config_key_in(name) != name:
            boards = ", ".join(BOARDS)
            yield f"quality.complete_from_moves: {name!r} is no <board>_<2-4>p, of {boards}"
    tiers = ("stop_background_from", "cleanup_from", "stop_production_from", "critical_from")
    for lower, upper in pairwise(tiers):
        if getattr(disk, lower) > getattr(disk, upper):
            yield f"disk.{lower}: must not be above {upper}, which is {getattr(disk, upper):g}"


def _unknown_selectors(where: str, names: Sequence[str]) -> Iterator[str]:
    plain = [name for name in names if not name.startswith(BY_NAME)]
    yield from _unknown(where, plain, (*SELECTORS, f"{BY_NAME}<glob>"))


def _unknown(where: str, names: Sequence[str], allowed: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name not in allowed:
            yield f"{where}: {name!r} is none of: {', '.join(allowed)}"


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return msgspec.to_builtins(value)


def _read(kind: Any, value: Any, where: str, base: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _read_struct(kind, value, where, base)
    if typing.get_origin(kind) is dict:
        return _read_names(kind, value, where, base)
    return _read_plain(kind, value, where)


def _read_struct(kind: type[msgspec.Struct], value: Any, where: str, base: Any) -> Any:
    hints = _hints(kind)
    fields: dict[str, Any] = {}
    for name, item in _table(value, where).items():
        if name not in hints:
            raise PolicyError(f"{where}: unknown field {name!r}; {meant(name, 'fields', hints)}")
        fields[name] = _read(hints[name], item, f"{where}.{name}", getattr(base, name, None))
    if base is not None:
        return msgspec.structs.replace(base, **fields)
    try:
        return kind(**fields)
    except TypeError:
        needed = [f.name for f in msgspec.structs.fields(kind) if f.required]
        raise PolicyError(f"{where}: needs {', '.join(needed)}") from None


def _read_names(kind: Any, value: Any, where: str, base: Any) -> dict[Any, Any]:
    key_kind, item_kind = typing.get_args(kind)
    names = dict(base or {})
    for key, item in _table(value, where).items():
        name = _read_plain(key_kind, key, f"{where}.{key}")
        names[name] = _read(item_kind, item, f"{where}.{key}", names.get(name))
    return names


def _read_plain(kind: Any, value: Any, where: str) -> Any:
    if isinstance(value, str) and typing.get_origin(kind) is tuple:
        # As the environment writes lists.
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        raise PolicyError(f"{where}{place.rstrip('`')}: {text}{_allowed(kind)}") from None


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PolicyError(f"{where}: expected a table, got `{type(value).__name__}`")
    return value


def _allowed(kind: Any) -> str:
    """The names a field may hold, where it holds names out of a few."""
    found = [str(member) for choice in _choices(kind) for member in choice]
    return f"; may be: {', '.join(found)}" if found else ""


def _choices(kind: Any) -> Iterator[type[enum.Enum]]:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        yield kind
    for part in typing.get_args(kind):
        yield from _choices(part)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}  # type: ignore[attr-defined]
