"""The only package that knows devices and processes."""
