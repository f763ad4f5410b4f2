"""From a plan to events: order, devices, executors, retries."""
