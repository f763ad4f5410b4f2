"""Trackers: where what jobs say is kept besides their own files, one file a tracker."""
