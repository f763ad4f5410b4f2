"""Searches loss weights and options of methods: trials are jobs, and Optuna says which come next."""
