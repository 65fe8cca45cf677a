"""Images and a backbone -> features."""
