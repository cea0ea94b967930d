"""What commands print: lines for people."""

from __future__ import annotations

from dataplane.cli.show import lines


def test_of_several_alerts_each_has_a_line() -> None:
    """They hold commas themselves, and one paragraph of ten can't be read."""
    told = ["s3 can't be reached: no", "copies are missing on s3, train"]
    assert list(lines("alerts", told)) == [
        "alerts         s3 can't be reached: no",
        "               copies are missing on s3, train",
    ]
    assert list(lines("alerts", [])) == ["alerts         -"]


def test_bytes_are_told_in_the_unit_that_reads_best() -> None:
    """Those of the whole as those within."""
    assert list(lines("total_bytes", 13_103_104)) == ["total_bytes    13.1 MB"]
    assert list(lines("s3", {"stored_bytes": 1000})) == ["s3             stored 1.0 KB"]
