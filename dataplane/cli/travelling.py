"""Commands that look at the past: what was known at a moment, and what changed between two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.text import Text

from dataplane.audit.comparing import Change, changes, picture
from dataplane.audit.moments import FORMS, point_of
from dataplane.audit.sources import LIVE, open_source
from dataplane.audit.whatif import Outcome, what_if
from dataplane.cli import looking, reasons, show, views
from dataplane.cli.app import BACK, From, Json, app, config_of, run
from dataplane.config import ConfigError, DataPlaneConfig
from projections.cluster import ClusterView
from projections.snapshot import Snapshots
from projections.travel import past


class _TimeFirst(typer.core.TyperGroup):
    """A group whose own options may stand before TIME and behind it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As click, but for options right behind the first word: those stand before it, too."""
        if args and not args[0].startswith("-"):
            behind = 1
            while behind < len(args) and args[behind].startswith("--"):
                behind += 1 if "=" in args[behind] or args[behind] == "--help" else 2
            args = [*args[1:behind], args[0], *args[behind:]]
        return super().parse_args(ctx, args)


at_app = typer.Typer(cls=_TimeFirst, no_args_is_help=True, help="What was known at a moment.")
app.add_typer(at_app, name="at", rich_help_panel=BACK)


@at_app.callback()
def at(
    moment: Annotated[str, typer.Argument(metavar="TIME", help=f"{FORMS}.")], source: From = LIVE
) -> None:
    """What was known at TIME: the views folded up to there, and thrown away again."""
    views.look_at(source=source, time=moment)


for command in (
    looking.where,
    looking.missing,
    looking.plans,
    looking.chains,
    looking.chain,
    looking.nodes,
    reasons.why,
):
    at_app.command()(command)
at_app.command("why-not")(reasons.why_not)
at_app.command("catalog")(looking.catalog_ls)


@app.command(rich_help_panel=BACK)
def diff(
    first: Annotated[str, typer.Argument(metavar="T1", help=f"{FORMS}.")],
    second: Annotated[str, typer.Argument(metavar="T2", help="The same; or now.")] = "0s",
    source: From = LIVE,
    as_json: Json = False,
) -> None:
    """What changed between two moments in catalog, nodes, plans and chains."""

    async def compare() -> list[Change]:
        async with open_source(source, config_of()) as log:
            one, other = await point_of(log, first, "T1"), await point_of(log, second, "T2")
            if one > other:
                raise ConfigError(f"T1 {first!r} is later than T2 {second!r}: the earlier is first")
            async with past(log, one, Snapshots(config_of().snapshots_dir)) as there:
                since = there.checkpoint.time
                before = picture(ClusterView(there.reader))
                await there.go_on(other)
                return list(changes(before, picture(ClusterView(there.reader), since)))

    found = run(compare())
    if as_json:
        show.print_json([_change_row(change) for change in found])
        return
    for change in found:
        show.console.print(_change_line(change), soft_wrap=True)
    if not found:
        show.console.print("nothing changed")


def _change_row(change: Change) -> dict[str, Any]:
    return {
        "section": change.section,
        "change": change.kind,
        "key": change.key,
        "before": change.before,
        "after": change.after,
    }


_SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


def _change_line(change: Change) -> Text:
    sign, style = _SIGNS[change.kind]
    line = Text(f"{sign} ", style=style)
    line.append(f"{change.section:<8} ", style="dim").append(change.key)
    for name, (before, after) in change.fields().items():
        if change.kind == "changed":
            line.append(f"  {name}: {_brief(before)} → {_brief(after)}")
        elif name in ("locations", "status", "reason", "state", "roles") and (after or before):
            line.append(f"  {name}: {_brief(after if change.kind == 'added' else before)}")
    return line


def _brief(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@app.command(rich_help_panel=BACK)
def whatif(
    policy: Annotated[Path, typer.Option("--policy", help="A dataplane.toml with other rules.")],
    since: Annotated[str, typer.Option(help=f"Decisions from then on: {FORMS}.")] = "#0",
    until: Annotated[str, typer.Option(help="Up to then.")] = "0s",
    source: From = LIVE,
    as_json: Json = False,
) -> None:
    """What another policy would have planned, on what was known at each decision."""

    async def ask() -> Outcome:
        today = config_of()
        other = DataPlaneConfig.load(policy)
        async with open_source(source, today) as log:
            begin = await point_of(log, since, "--since")
            end = await point_of(log, until, "--until")
            return await what_if(
                log,
                today.policy(),
                other.policy(),
                since=begin,
                until=end,
                snapshots=Snapshots(today.snapshots_dir),
            )

    outcome = run(ask())
    if as_json:
        show.print_json(outcome)
        return
    show.console.print(
        f"{outcome.decisions} decisions; today's policy takes {outcome.as_recorded} of them as "
        "they were recorded"
    )
    rows = [
        {"": name, "today": getattr(outcome.today, name), "then": getattr(outcome.other, name)}
        for name in ("plans", "copies", "bytes", "deadlines_missed", "below_minimum", "blocked")
    ]
    show.emit(rows, ["", "today", "then"], as_json=False, empty="")
    for one in outcome.changed:
        show.console.print(f"chain {one.chain} ({one.trigger} of {one.node})", highlight=False)
        for sign, copies in (("+", one.added), ("-", one.dropped)):
            for copy in copies:
                show.console.print(f"  {sign} {copy}", highlight=False, markup=False)
