"""The outermost room: definitions, jobs, sensors, schedules and the command line."""
