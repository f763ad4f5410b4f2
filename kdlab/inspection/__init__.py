"""What a dataset holds and what is wrong with it: labels, boxes, image files; no torch."""
