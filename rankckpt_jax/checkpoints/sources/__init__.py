"""One file per kind of checkpoint."""
