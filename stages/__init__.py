"""Every stage declared once: what it needs, what it makes, and whether that is current.

No Dagster here. ``stages.registry.STAGES`` lists the stages; ``stages.project.Project`` answers
for a store and an artifacts folder which artifacts are current, and makes those that are not.
Reuse, refusals, sensor, schedule, ``doctor``, the page and the command line ask it and nothing
else. Only this package reads manifests and fingerprints.
"""
