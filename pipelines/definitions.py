"""What Dagster loads: the graph on the workspace and the executor that the environment names."""

from pipelines.executors import execution_from_environment
from pipelines.graph import build_defs
from stages.workspace import workspace_from_environment

defs = build_defs(workspace=workspace_from_environment(), execution=execution_from_environment())
