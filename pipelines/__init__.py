"""The outermost package: definitions, jobs, sensors, schedules and the command line."""
