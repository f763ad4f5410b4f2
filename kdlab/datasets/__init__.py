"""Datasets, one file each: `prepare(**options)` makes or finds the files and says where they are."""
