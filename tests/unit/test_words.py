"""Numbers and facts in words."""

from __future__ import annotations

from dataplane.typos import meant
from dataplane.words import short, summary
from tests.spec import given, trainer


def test_of_a_sweep_the_number_is_shown() -> None:
    """All sweeps begin alike: the first letters of an id would say nothing."""
    assert short("sweep-replication-29932828") == "sweep-2828"
    assert short("b612c7ff6bde4c179bb6c8cf0fca2f8f") == "b612c7ff"


def test_of_what_a_message_without_an_id_began_all_is_shown() -> None:
    """Only the number at its end tells such chains apart, and what is shown must find its chain."""
    assert short("DATAPLANE-46") == "DATAPLANE-46"


def test_a_node_that_registers_is_shown_by_what_it_is() -> None:
    """Its roles, not the name of a class."""
    [fact] = given(trainer()).facts
    assert "description=training" in summary(fact)


def test_what_was_meant_is_the_name_most_like_it_or_one_of_all() -> None:
    """In whatever case it was written; a word like none of them is answered with all."""
    assert meant("nodde", "fields", ["node", "roles"]) == "did you mean 'node'?"
    assert meant("selfplay_complete", "known", ["SELFPLAY_COMPLETE"]).endswith(
        "'SELFPLAY_COMPLETE'?"
    )
    assert meant("xyz", "fields", ["node", "roles"]) == "fields: node, roles"
