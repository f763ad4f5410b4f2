"""Hyperparameter search with Optuna: a plan that grows."""
