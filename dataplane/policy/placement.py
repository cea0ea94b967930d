"""The routing table: which trigger moves what, from where, to whom, how, and how urgently.

One `Rule` is one row; to change where data goes, change it here or in a
``[policy.placement.rules.<name>]`` table. The planner only reads it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from msgspec import field

from dataplane.policy.limits import Concern, NotNegative, Share, Whole, matches_any
from streams.identity import glob_matches
from streams.values import (
    S3_NODE,
    DataEntry,
    DataType,
    NodeDescription,
    Role,
    SyncPriority,
    Trait,
    Value,
)

#: Targets that no node is by its roles or traits: who speaks, whom the trigger names, the bucket.
SPEAKER, NAMED = "speaker", "named"
BY_NAME = "name:"
SELECTORS = (SPEAKER, NAMED, S3_NODE, *Role, *Trait)


class Source(enum.StrEnum):
    """Whose copy is sent."""

    #: The node the trigger speaks of, and only what it is the authority of.
    SPEAKER = "speaker"
    #: The best of those that hold it.
    HOLDER = "holder"


class Order(enum.StrEnum):
    """Which of the transports' orders an entry takes."""

    #: By size: ``small_file`` or ``large_file``.
    BY_SIZE = "by_size"
    SMALL_FILE = "small_file"
    LARGE_FILE = "large_file"
    #: Many targets get the same at once.
    BROADCAST = "broadcast"
    #: What is urgent skips the slow starts of peer-to-peer; large files still go by size.
    URGENT = "ephemeral_urgent"


class Rule(Concern, frozen=True):
    """One row of the routing table."""

    #: Wire names of the triggers that it answers; none where it only says what belongs where.
    on: tuple[str, ...] = ()
    #: Which data: kinds (none: all, or those the trigger names), logical paths, configurations.
    data: tuple[DataType, ...] = ()
    paths: tuple[str, ...] = ("**",)
    config_keys: tuple[str, ...] = ("*",)
    source: Source = Source.SPEAKER
    #: To whom: roles, traits, ``name:<glob>``, or ``speaker``, ``named``, ``s3``.
    to: tuple[str, ...] = ()
    #: How many of them must have it, the best first; 0 means each.
    copies: Whole = 0
    #: One of ``placement.strategies``; ``auto`` chooses by who speaks.
    strategy: str = "hybrid"
    order: Order = Order.BY_SIZE
    priority: SyncPriority = SyncPriority.NORMAL
    #: After the trigger, where that names no deadline itself; 0 means any time will do.
    deadline_s: NotNegative = 0.0
    #: Whether games must be worth moving (``policy.quality``), and what is backed up must be of a
    #: kind and size for the bucket (``policy.s3``).
    quality_gate: bool = False
    backup_gate: bool = False
    #: Only what has too few lasting copies besides the speaker's (``policy.replication``), as many
    #: as are lacking, the most precious first and at the rule's priority, the others below it.
    only_endangered: bool = False
    #: Never to ephemeral nodes, nor to such as are to go.
    lasting_only: bool = False
    #: Only with slots and bandwidth that nothing else asks for (``policy.prestage.max_share``).
    spare_only: bool = False
    #: Targets after which MODEL_DISTRIBUTION_COMPLETE is said, or all if there are fewer; 0: never.
    quorum: Whole = 0
    #: Whether the data belongs there for good, trigger or not: what ``missing`` looks for.
    standing: bool = False
    enabled: bool = True
    reason: str = ""

    def takes(self, entry: DataEntry) -> bool:
        """Whether an entry is of the kind this rule moves; kinds that a trigger names aside."""
        return matches_any(entry.config_key, self.config_keys) and any(
            glob_matches(glob, entry.path) for glob in self.paths
        )


class Strategy(Concern, frozen=True):
    """A way to carry out a rule (K1)."""

    #: What is lost if it waits goes by the direct ways, at least this urgently.
    urgent: bool = False
    at_least: SyncPriority = SyncPriority.BACKGROUND
    #: Written through to these as well.
    also_to: tuple[str, ...] = ()
    #: Collected here instead of where the rule says, from whoever holds it.
    collect_to: tuple[str, ...] = ()
    #: Only nodes that pass ``placement.broadcast`` receive, those with most free space first.
    eligible_only: bool = False


class Broadcast(Concern, frozen=True):
    """Who may receive a broadcast (K6). What a node has not said of itself is not held against it.

    Nodes whose heartbeat stays away are taken out of planning altogether
    (``offline_after_seconds``).
    """

    min_free_disk_gb: NotNegative = 50.0
    min_free_memory: Share = 0.30


class Scores(Concern, frozen=True):
    """Which target and which source goes first (K7)."""

    target_base: float = 50.0
    training_active: float = 50.0
    #: For games and training sets.
    training_node: float = 30.0
    priority_host: float = 20.0
    #: Names or globs of nodes.
    priority_hosts: tuple[str, ...] = ()
    ephemeral_target: float = -15.0
    roomy_disk: float = 10.0
    roomy_below: Share = 0.50
    full_disk: float = -20.0
    full_above: Share = 0.70
    #: For each hour since it last received, up to the most; and if it never did.
    stale_per_hour: float = 1.0
    stale_most: float = 30.0
    never_synced: float = 30.0
    external_storage_source: float = 150.0
    same_provider: float = 20.0
    ephemeral_source: float = -10.0
    #: Times the quality of what it holds, 0 to 1.
    quality: float = 30.0


_STORAGE = (Role.COORDINATOR.value, Role.STORAGE.value)
_GAMES, _MODELS, _NPZ = (DataType.GAMES,), (DataType.MODELS,), (DataType.NPZ,)


def _rules() -> dict[str, Rule]:
    """The table as it is by default."""
    return {
        **_of_games(),
        **_of_trainings(),
        **_of_promotions(),
        **_of_requests(),
        **_of_sweeps(),
    }


def _of_games() -> dict[str, Rule]:
    """What was played leaves who played it."""
    return {
        "selfplay": Rule(
            on=("SELFPLAY_COMPLETE",),
            data=_GAMES,
            to=(Role.TRAINING,),
            strategy="auto",
            quality_gate=True,
            standing=True,
            reason="self-play games for the training nodes",
        ),
        "selfplay-backup": Rule(
            on=("SELFPLAY_COMPLETE",),
            data=_GAMES,
            to=(S3_NODE,),
            priority=SyncPriority.LOW,
            backup_gate=True,
            reason="self-play games for the bucket",
        ),
    }


def _of_trainings() -> dict[str, Rule]:
    """A training has its data, and what it made leaves the trainer."""
    return {
        "training-start": Rule(
            on=("TRAINING_STARTED",),
            data=_GAMES + _NPZ,
            source=Source.HOLDER,
            to=(SPEAKER,),
            order=Order.LARGE_FILE,
            priority=SyncPriority.HIGH,
            reason="a training run needs its data",
        ),
        "prestage": Rule(
            on=("TRAINING_EXPECTED",),
            data=_GAMES + _NPZ,
            source=Source.HOLDER,
            to=(SPEAKER,),
            priority=SyncPriority.BACKGROUND,
            spare_only=True,
            reason="ahead of a training run that is expected",
        ),
        "training-completed": Rule(
            on=("TRAINING_COMPLETED",),
            data=(DataType.MODELS, DataType.CHECKPOINT),
            to=_STORAGE,
            priority=SyncPriority.HIGH,
            reason="candidate and checkpoint leave the trainer",
        ),
        "training-completed-backup": Rule(
            on=("TRAINING_COMPLETED",),
            data=(DataType.MODELS, DataType.CHECKPOINT),
            to=(S3_NODE,),
            priority=SyncPriority.LOW,
            reason="candidate and checkpoint for the bucket",
        ),
    }


def _of_promotions() -> dict[str, Rule]:
    """A model that won goes to all who play with it."""
    return {
        "promotion": Rule(
            on=("MODEL_PROMOTED",),
            data=_MODELS,
            to=(Trait.GPU,),
            strategy="broadcast",
            order=Order.BROADCAST,
            priority=SyncPriority.HIGH,
            quorum=10,
            standing=True,
            reason="a promoted model for every GPU node",
        ),
        "promotion-backup": Rule(
            on=("MODEL_PROMOTED",),
            data=_MODELS,
            to=(S3_NODE,),
            priority=SyncPriority.LOW,
            reason="a promoted model for the bucket",
        ),
    }


def _of_requests() -> dict[str, Rule]:
    """Who needs data gets it; what is about to be lost goes where it lasts."""
    return {
        "orphans": Rule(
            on=("ORPHAN_GAMES_DETECTED",),
            data=_GAMES,
            to=(*_STORAGE, S3_NODE),
            order=Order.URGENT,
            priority=SyncPriority.CRITICAL,
            reason="orphaned games to safety",
        ),
        "needed": Rule(
            on=("DATA_NEEDED",),
            source=Source.HOLDER,
            to=(SPEAKER,),
            priority=SyncPriority.HIGH,
            reason="a node asked for data",
        ),
        "requested": Rule(
            on=("DATA_SYNC_REQUESTED",),
            source=Source.HOLDER,
            to=(NAMED,),
            reason="a sync was requested",
        ),
        "terminating": Rule(
            on=("NODE_TERMINATING",),
            to=(Role.STORAGE, Role.COORDINATOR, S3_NODE, Role.TRAINING),
            order=Order.URGENT,
            priority=SyncPriority.CRITICAL,
            only_endangered=True,
            lasting_only=True,
            reason="a node is about to vanish",
        ),
    }


def _of_sweeps() -> dict[str, Rule]:
    """What nobody asks for and belongs somewhere all the same."""
    return {
        "replication": Rule(
            on=("SWEEP_DUE/replication",),
            source=Source.HOLDER,
            to=(Role.STORAGE, Role.COORDINATOR, Role.TRAINING, Role.SELFPLAY),
            only_endangered=True,
            lasting_only=True,
            reason="too few copies",
        ),
        "s3-cycle": Rule(
            on=("SWEEP_DUE/s3",),
            source=Source.HOLDER,
            to=(S3_NODE,),
            priority=SyncPriority.BACKGROUND,
            backup_gate=True,
            reason="the bucket's turn",
        ),
        "training-sets": Rule(
            data=_NPZ,
            source=Source.HOLDER,
            to=(Role.TRAINING,),
            standing=True,
            reason="training sets for the training nodes",
        ),
    }


def _strategies() -> dict[str, Strategy]:
    """K1: the strategies of old, as data. ``auto`` is a choice among them."""
    return {
        "hybrid": Strategy(),
        "ephemeral": Strategy(
            urgent=True, at_least=SyncPriority.HIGH, also_to=(Role.STORAGE, S3_NODE)
        ),
        "broadcast": Strategy(eligible_only=True),
        "pull": Strategy(collect_to=_STORAGE),
    }


AUTO = "auto"


class Placement(Concern, frozen=True):
    """What goes where: the rules, and the ways to carry them out."""

    rules: dict[str, Rule] = field(default_factory=_rules)
    strategies: dict[str, Strategy] = field(default_factory=_strategies)
    broadcast: Broadcast = Broadcast()
    scores: Scores = Scores()
    #: A version with less than this share of what it would replace is refused (P5): of its bytes
    #: for training sets, of its games for games.
    regression: dict[DataType, Share] = field(
        default_factory=lambda: {DataType.NPZ: 0.8, DataType.GAMES: 0.8}
    )

    def rules_on(self, trigger: str) -> Iterator[tuple[str, Rule]]:
        """The rules that answer a trigger, by its wire name, with their own names.

        A sweep is named with its kind: ``SWEEP_DUE/replication``.
        """
        for name, rule in self.rules.items():
            if rule.enabled and trigger in rule.on:
                yield name, rule

    def standing(self) -> Iterator[Rule]:
        """The rules that say where data belongs for good."""
        return (rule for rule in self.rules.values() if rule.enabled and rule.standing)

    def strategy(self, rule: Rule, speaker: NodeDescription | None) -> tuple[str, Strategy]:
        """How a rule is carried out for who speaks: AUTO asks what the speaker is (K1)."""
        name = rule.strategy
        if name == AUTO:
            name = "hybrid"
            if speaker is not None and Trait.EPHEMERAL in speaker.traits:
                name = "ephemeral"
            elif speaker is not None and Role.COORDINATOR in speaker.roles:
                name = "broadcast"
        return name, self.strategies[name]


def selects(selector: str, node: NodeDescription) -> bool:
    """Whether a node is one of those that a selector means by role, trait or name."""
    if selector.startswith(BY_NAME):
        return matches_any(node.name, (selector.removeprefix(BY_NAME),))
    return selector in node.roles or selector in node.traits


class NodeRule(Value, frozen=True, forbid_unknown_fields=True):
    """What is said of nodes whose name matches, over what they say of themselves."""

    roles: tuple[Role, ...] | None = None
    traits: tuple[Trait, ...] | None = None
    provider: str | None = None
    nfs_group: str | None = None
