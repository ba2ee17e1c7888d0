"""What assets share: the workspace as a resource, guards, runs and Dagster's records."""
