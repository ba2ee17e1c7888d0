"""Settings that ship with phasewatch: run configurations and the Dagster instance's."""
