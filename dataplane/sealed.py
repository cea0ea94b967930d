"""Whom the bucket's copy is of use where it is sealed: those who are known to hold its key.

Nothing here knows a key: nodes say which one they have by an id that says nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from projections.nodes import NodeRow


def opens(node: NodeRow | None, sealed_with: str) -> bool:
    """Whether a node can open what is sealed with a key; "" is no key, and opens to all."""
    return not sealed_with or (node is not None and node.description.seal_key == sealed_with)


def stands_alone(sealed_with: str, holders: Collection[str], lasting: Iterable[NodeRow]) -> bool:
    """Whether the bucket's copy is one more besides those of `holders`: of `lasting` nodes, one
    that is none of them can open it. Else it is lost with the last of them.
    """
    return not sealed_with or any(
        opens(node, sealed_with) for node in lasting if node.name not in holders
    )
