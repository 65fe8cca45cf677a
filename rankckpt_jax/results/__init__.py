"""What is known about checkpoints and rankings, as plain data."""
