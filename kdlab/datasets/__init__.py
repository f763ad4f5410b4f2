"""Datasets, one file each: `prepare(**options)` makes or finds the files and says where they are."""

from kdlab import plugins

__path__ += plugins.of("datasets")
