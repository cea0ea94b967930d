"""The routing table in words for people, rule by rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dataplane.policy import Policy, Rule, Source, Strategy
from dataplane.policy.placement import AUTO, NAMED, SPEAKER
from streams import events
from streams.values import S3_NODE

_EXPECTED = events.type_name(events.TrainingExpected)


def rows_of_rules(policy: Policy, trigger: str = "") -> list[dict[str, Any]]:
    """The rules that are in force, all or those of one trigger, as plain data."""
    return [
        {"rule": name, **msgspec.to_builtins(rule, str_keys=True), "says": _says(policy, rule)}
        for name, rule in policy.placement.rules.items()
        if rule.enabled and trigger in ("", *rule.on)
    ]


def sentences(policy: Policy, trigger: str = "") -> Iterator[str]:
    """What each trigger moves, in sentences."""
    rules = policy.placement.rules.items()
    triggers = [trigger] if trigger else list(dict.fromkeys(t for _, r in rules for t in r.on))
    for name in triggers:
        yield name
        answering = list(policy.placement.rules_on(name))
        if not answering:
            yield "  moves nothing: no rule answers it"
        for rule_name, rule in answering:
            yield f"  {rule_name}: {_says(policy, rule)}"
        if name == _EXPECTED:
            yield f"  {_when_expected(policy)}"
    if not trigger:
        yield "without a trigger"
        for rule_name, rule in rules:
            if rule.enabled and rule.standing and not rule.on:
                yield f"  {rule_name}: {_says(policy, rule)}"
        yield from _exclusions(policy)


def _when_expected(policy: Policy) -> str:
    ahead = policy.prestage
    if not ahead.enabled:
        return "never said: policy.prestage.enabled is false"
    text = "said where a node trains a configuration in a rhythm with a confidence from "
    text += (
        f"{ahead.min_confidence:g} on, {ahead.horizon_s:g} s before the expected start, at most "
    )
    return f"{text}once in {ahead.cooldown_s:g} s, and given up {ahead.horizon_s:g} s after it"


def _says(policy: Policy, rule: Rule) -> str:
    parts = [_what(rule), _from(rule), _to(policy, rule), _how(policy, rule)]
    return f"{rule.reason or 'moves data'}: " + ", ".join(part for part in parts if part)


def _what(rule: Rule) -> str:
    data = " and ".join(rule.data) or "the data it speaks of"
    where = [f"of {' or '.join(rule.config_keys)}"] if rule.config_keys != ("*",) else []
    where += [f"at {' or '.join(rule.paths)}"] if rule.paths != ("**",) else []
    return " ".join((data, *where))


def _from(rule: Rule) -> str:
    if rule.source is Source.SPEAKER:
        return "from the node that says so"
    return "from the best holder"


def _to(policy: Policy, rule: Rule) -> str:
    asks = "the node that is to train" if _EXPECTED in rule.on else "the node that asks"
    names = {SPEAKER: asks, NAMED: "the nodes it names", S3_NODE: "the bucket"}
    wanted = [names.get(selector, f"{selector} nodes") for selector in rule.to]
    to = f"to {' and '.join(wanted)}"
    if rule.copies:
        to += f", {rule.copies} of them"
    if rule.only_endangered:
        minimum = policy.replication.minimum
        to += f" until there are {minimum} lasting copies, the most precious first"
    if rule.lasting_only:
        to += ", never to ephemeral ones or such as are to go"
    if S3_NODE in rule.to and not policy.s3.enabled:
        to += " (there is no bucket: policy.s3.enabled is false)"
    return to


def _how(policy: Policy, rule: Rule) -> str:
    parts = [f"{rule.priority} priority", f"by {_order(policy, rule)}", _strategy(policy, rule)]
    if rule.deadline_s:
        parts.append(f"due {rule.deadline_s:g} s after the trigger")
    if rule.spare_only:
        share = policy.prestage.max_share
        parts.append(
            f"only with what nothing else asks for, {share:.0%} of slots and rates at most"
        )
    if rule.quality_gate:
        parts.append(f"databases from {policy.quality.min_games} games if there are others")
        parts.append(f"of a mean quality from {policy.quality.min_mean:g}")
    if rule.backup_gate:
        parts.append(f"from {policy.s3.min_games} games, of the kinds that are backed up")
    if rule.quorum:
        parts.append(f"MODEL_DISTRIBUTION_COMPLETE at {rule.quorum} or all")
    return ", ".join(part for part in parts if part)


def _order(policy: Policy, rule: Rule) -> str:
    transports = policy.transports
    if set(rule.to) == {S3_NODE}:
        return "s3"
    if rule.order == "by_size":
        small, large = (
            " → ".join(chain) for chain in (transports.small_file, transports.large_file)
        )
        return f"{small}, above {transports.large_file_mb} MB {large}"
    return " → ".join(getattr(transports, rule.order))


def _strategy(policy: Policy, rule: Rule) -> str:
    if rule.strategy == AUTO:
        return "as ephemeral or broadcast where the speaker is one or the coordinator (auto)"
    strategy = policy.placement.strategies[rule.strategy]
    return "" if strategy == Strategy() else f"as {rule.strategy}"


def _exclusions(policy: Policy) -> Iterator[str]:
    yield "never a target"
    hosts = ", ".join(policy.exclusion.exclude_hosts) or "none"
    yield f"  by name: {hosts}; with skip_sync_receive; offline"
    if policy.exclusion.coordinator_needs_storage:
        yield "  a coordinator without external storage, unless it asks"
