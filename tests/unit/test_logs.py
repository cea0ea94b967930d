"""What a line says of itself beside its message: the chain and the fact it is about."""

from __future__ import annotations

import asyncio
import logging

from dataplane.agent.deliveries import left_to_redelivery
from dataplane.logs import about, about_chain
from streams.codec import fact_id, node_fact
from streams.memory import MemoryLog
from tests.spec import played

logger = logging.getLogger("dataplane.test")


async def test_what_an_agent_says_of_its_work_names_the_fact_and_its_chain(
    json_lines: list[dict[str, str]],
) -> None:
    """Also what is said by whatever it calls, in tasks of its own, and of what was not foreseen."""
    log = MemoryLog()
    await log.publish(node_fact(played(), "gpu-1", fact_id("played")))
    deliveries = await log.consume("d", ["dp.node.>"], ack_wait_s=30.0, max_pending=8)
    delivery = await anext(aiter(deliveries))

    async def deep() -> None:
        logger.info("deep inside")

    async with left_to_redelivery(delivery):
        await asyncio.create_task(deep())
        raise KeyError("nobody thought of that")
    logger.info("afterwards")
    _, inside, surprise, after = json_lines
    for line in (inside, surprise):
        assert line["event"] == delivery.recorded.id
        assert line["chain"] == delivery.recorded.chain
        assert line["type"] == "SELFPLAY_COMPLETE"
    assert "nobody thought of that" in surprise["exception"]
    assert not {"event", "chain", "type"} & set(after)


async def test_what_is_about_a_chain_within_another_names_the_inner_one(
    json_lines: list[dict[str, str]],
) -> None:
    """And the outer one again behind it; what is not known is not there."""
    log = MemoryLog()
    await log.publish(node_fact(played(), "gpu-1", fact_id("played")))
    recorded = await log.get(1)
    assert recorded is not None
    with about(recorded):
        with about_chain("c1"):
            logger.info("inner")
        logger.info("outer")
    inner, outer = json_lines
    assert inner["chain"] == "c1" and "event" not in inner
    assert outer["event"] == recorded.id
