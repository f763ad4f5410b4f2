"""Contents and defects of a dataset: labels, boxes, image files; no torch."""
