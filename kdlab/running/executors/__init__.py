"""Ways to run a job's process: one file each, four methods over plain data."""
