"""A run's directory on disk or in a bucket."""
