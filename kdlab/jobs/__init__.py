"""What a job is on disk: the contract between the processes that plan, run, follow and report it."""
