"""What jobs wrote becomes tables and MLflow runs; reads files only and starts nothing."""
