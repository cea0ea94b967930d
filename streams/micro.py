"""A service of the bus as data: questions that any client in any language may ask.

``nats service ls|info|stats|ping`` find it, and of several that offer the same one answers each
question. It never says more than it was asked, and what goes wrong reaches who asked as an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec


class ServiceRefusal(Exception):
    """The question can't be answered; who asked gets the code and the text."""

    def __init__(self, text: str, code: str = "400") -> None:
        super().__init__(text)
        self.code = code


class Question(msgspec.Struct, frozen=True):
    """One endpoint of a service."""

    #: What ``nats service info`` calls it.
    name: str
    subject: str
    #: Gets the body of the question, gives that of the answer; ServiceRefusal where it can't.
    answer: Callable[[bytes], Awaitable[bytes]]
    #: Shown with it, such as the JSON Schemas of question and answer.
    metadata: dict[str, str] = {}


class Service(msgspec.Struct, frozen=True):
    """Questions that are answered together under one name."""

    name: str
    #: A semantic version.
    version: str
    description: str
    questions: tuple[Question, ...]
    #: Of those that give the same queue, one gets each question.
    queue: str = "q"
    #: What tells this instance from others, such as its node.
    metadata: dict[str, str] = {}
