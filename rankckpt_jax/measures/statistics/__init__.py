"""Statistics shared by several measures."""
