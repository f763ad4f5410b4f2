"""What a person types: one file a verb, found by its name. Nothing heavy is imported before a verb runs."""
