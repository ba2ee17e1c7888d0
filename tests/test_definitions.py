"""A snapshot of the Dagster graph: what a refactoring must not change without saying so.

After an intended change, rewrite it: ``python tests/test_definitions.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.graph import build_defs

SNAPSHOT = Path(__file__).parent / "snapshots" / "definitions.json"


def described(definitions: dg.Definitions) -> dict[str, Any]:
    """Assets with their groups, kinds, partitions, dependencies and checks; jobs; automation."""
    graph = definitions.resolve_asset_graph()
    assets: dict[str, Any] = {}
    for key in sorted(graph.get_all_asset_keys(), key=dg.AssetKey.to_user_string):
        node = graph.get(key)
        partitions = node.partitions_def
        assets[key.to_user_string()] = {
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "code_version": node.code_version,
            "partitions": None
            if partitions is None
            else getattr(partitions, "name", None) or type(partitions).__name__,
            "deps": sorted(parent.to_user_string() for parent in node.parent_keys),
            "pools": sorted(node.pools or ()),
            "fresh": node.freshness_policy is not None,
            "checks": {
                check.name: graph.get_check_spec(check).blocking
                for check in sorted(node.check_keys, key=lambda check: check.name)
            },
        }
    repository = definitions.get_repository_def()
    jobs = {
        job.name: sorted(key.to_user_string() for key in job.asset_layer.executable_asset_keys)
        for job in repository.get_all_jobs()
        if not job.name.startswith("__")
    }
    return {
        "assets": assets,
        "jobs": jobs,
        "sensors": sorted(sensor.name for sensor in repository.sensor_defs),
        "schedules": sorted(schedule.name for schedule in repository.schedule_defs),
    }


def test_the_graph_is_the_one_on_record() -> None:
    assert described(build_defs()) == json.loads(SNAPSHOT.read_text())


if __name__ == "__main__":
    text = json.dumps(described(build_defs()), indent=1, sort_keys=True)
    SNAPSHOT.write_text(text + "\n")
