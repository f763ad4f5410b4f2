"""kdlab: distil object detectors, and compare the ways of doing so."""

__version__ = "0.1.0"
