"""From a recipe and what is known of data, models and earlier jobs to a plan."""
