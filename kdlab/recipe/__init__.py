"""From YAML, overrides and derived ablations to one resolved recipe, or all its faults at once."""
