"""One file per verb; the function named like the file is the verb."""
