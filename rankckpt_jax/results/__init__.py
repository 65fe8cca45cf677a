"""What is known of checkpoints and rankings, as plain data."""
