"""How a command finds out what is: from the views on this machine, else from a coordinator.

With ``--nats`` it is that bus's cluster that is asked about, and the views here may be another's:
then a coordinator answers. With ``at`` or ``--from`` it is always the moment's own views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dataplane.api import DataPlane
from dataplane.cli import app as shared
from dataplane.cli import views
from dataplane.cli.app import config_of, run
from dataplane.queries import PREFIX, QUERIES, Ask
from dataplane.questions import ask_any
from projections.store import StoreMissing
from streams.log import LogUnavailable
from streams.micro import ServiceRefusal
from streams.services import RequestFailed

#: How long a coordinator may take to answer.
ANSWER_S = 10.0


def answered(name: str, ask: Ask, beats: Mapping[str, dict[str, Any]] | None = None) -> Any:
    """What a question of `dataplane.queries` finds; `beats` are heartbeats for the views here.

    Raises what `either` does.
    """
    return either(lambda: _found_here(name, ask, beats or {}), name, ask)


def either(here: Callable[[], Any], name: str, ask: Ask) -> Any:
    """What `here` finds in the views on this machine; without any, a coordinator's answer.

    Raises ServiceRefusal; StoreMissing where there are no views and no coordinator answers.
    """
    if elsewhere():
        return run(_asked(name, ask))
    try:
        return here()
    except StoreMissing as missing:
        if views.moment is not None:
            raise
        try:
            return run(_asked(name, ask))
        except LogUnavailable as error:
            raise StoreMissing(f"{missing}; and no coordinator answers: {error}") from None


def elsewhere() -> bool:
    """Whether a bus was named for this command, so that the views here may not be of its log."""
    return views.moment is None and shared.arguments.get("nats_url") is not None


def _found_here(name: str, ask: Ask, beats: Mapping[str, dict[str, Any]]) -> Any:
    with views.open_views() as found:
        return found.answer(name, ask, dict(beats))


async def _asked(name: str, ask: Ask) -> Any:
    async with DataPlane.connect(config=config_of()) as plane:
        bus = (await plane.log()).bus
        try:
            body = await ask_any(bus, f"{PREFIX}.{name}", msgspec.json.encode(ask), ANSWER_S)
        except RequestFailed as error:
            text = str(error).removeprefix(f"{PREFIX}.{name}: ")
            raise ServiceRefusal(text, error.code) from None
    return msgspec.json.decode(body, type=QUERIES[name][1])
