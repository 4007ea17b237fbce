"""The process around a job: command line, Ray connection, progress, metrics log, clocks, stop requests,
precision."""
