"""The published schema of the wire: AsyncAPI 3, made from the event classes themselves."""

from __future__ import annotations

import inspect
from typing import Any

from streams.events import EVENT_TYPES, json_schemas
from streams.subjects import Place, place_of

_OWNERS = {Place.NODE: "node", Place.CHAIN: "chain", Place.TASK: "executor"}


def asyncapi() -> dict[str, Any]:
    """The whole document; the same for the same code."""
    refs, components = json_schemas()
    channels, operations, messages = {}, {}, {}
    for name, cls in EVENT_TYPES.items():
        place = place_of(cls)
        owner = _OWNERS[place]
        messages[name] = {
            "name": name,
            "summary": inspect.getdoc(cls),
            "contentType": "application/json",
            "payload": refs[name],
            "headers": {"$ref": "#/components/schemas/CloudEventHeaders"},
        }
        channels[name] = {
            "address": f"dp.{place}.{{{owner}}}.{name}.{{config_key}}",
            "parameters": {owner: {}, "config_key": {}},
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        }
        operations[f"say_{name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
        }
    components["CloudEventHeaders"] = _HEADERS
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "dataplane",
            "version": "1",
            "description": "Every fact of the data plane. All live in the stream DATAPLANE. "
            "Headers are optional for triggers published by hand.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": dict(sorted(components.items()))},
    }


_HEADERS = {
    "type": "object",
    "properties": {
        "ce-specversion": {"const": "1.0"},
        "ce-id": {"type": "string", "description": "also Nats-Msg-Id: stored once"},
        "ce-type": {"type": "string"},
        "ce-source": {"type": "string"},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-correlationid": {"type": "string", "description": "the chain"},
        "ce-causationid": {"type": "string", "description": "the event that caused this one"},
        "ce-dataversion": {"const": "1", "description": "absent: legacy names are lifted"},
        "traceparent": {
            "type": "string",
            "description": "W3C trace context; a trigger's is its chain's",
        },
    },
}
