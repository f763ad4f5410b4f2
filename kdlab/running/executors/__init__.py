"""Ways to run a job's process: one file each, four methods over plain data."""

from kdlab import plugins

__path__ += plugins.of("executors")
