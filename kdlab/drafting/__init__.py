"""From a folder of images and labels to a recipe that runs."""
