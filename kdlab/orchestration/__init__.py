"""Decides what runs where: recipes, plans, scheduling, tuning; never imports torch or mmdet."""
