"""Which tests must notice a change of a module: those that state its rules, and no others."""

from __future__ import annotations

#: By the beginning of a module's name.
_SUITES = {
    "adapters.files.arrivals": ("arrivals", "receiving", "together", "transport_manager"),
    "adapters.files.group": ("group", "together"),
    "adapters.files.landing": ("landing",),
    "adapters.files.partial": ("landing",),
    "adapters.files.turns": ("arrivals",),
    "dataplane.chain": ("owed", "duties", "backup", "prestaging"),
    "dataplane.duties": ("duties", "owed", "prestaging"),
    "dataplane.planner": ("planner", "policy_cases", "refusals", "prestaging"),
    "projections.catalog": ("catalog", "sweeps", "fold"),
    "projections.chains": ("chains_view", "owed", "backup", "tracing"),
    "projections.deletions": ("deletions_view", "deleting", "deletion"),
    "projections.fold": ("fold", "rejected_view"),
    "projections.guards": ("fold", "bridge"),
    "projections.links": ("links_view", "admission"),
    "projections.nodes": ("nodes_view", "admission"),
    "projections.queue": ("transfers_view", "ordering", "admission"),
    "projections.rejected": ("rejected_view",),
    "projections.standing": ("sweeps", "catalog", "tallies"),
    "projections.sweeps": ("sweeps",),
    "projections.tallies": ("tallies",),
    "projections.transfers": ("transfers_view", "owed"),
}


def test_files(module: str) -> tuple[str, ...]:
    """The files of tests for a module. Raises LookupError for one that has none."""
    for beginning, names in _SUITES.items():
        if f"{module}.".startswith(f"{beginning}."):
            return tuple(f"tests/unit/test_{name}.py" for name in names)
    raise LookupError(f"tests/mutation/suites.py names no tests for {module}")
