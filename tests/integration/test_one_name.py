"""Two agents of one name, real processes: one works, the other is refused with the reason."""

from __future__ import annotations

from pathlib import Path

from streams.values import Role
from tests.integration.cluster import LocalCluster, until


async def test_a_second_agent_of_a_name_is_refused_and_a_killed_one_comes_back_at_once(
    tmp_path: Path,
) -> None:
    """Both would do the same work; who works on the same directory takes over without waiting."""
    async with LocalCluster(tmp_path) as cluster:
        cluster.coordinator()
        first = cluster.agent("gpu-1", Role.SELFPLAY)
        await cluster.joined("gpu-1")
        other = tmp_path / "elsewhere"
        second = cluster.agent(
            "gpu-1",
            Role.SELFPLAY,
            DATAPLANE_DATA_DIR=str(other / "data"),
            DATAPLANE_STATE_DIR=str(other / "state"),
        )
        await until(lambda: second.poll() is not None, "the second to be refused")
        assert second.returncode == 1
        assert "no two may have one name at once" in " ".join(cluster.said("gpu-1").split())
        assert first.poll() is None
        first.kill()
        first.wait()
        again = cluster.agent("gpu-1", Role.SELFPLAY)
        await cluster.joined("gpu-1")
        assert again.poll() is None
