"""Config -> ranking. The only package that reads a config."""
