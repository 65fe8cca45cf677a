"""Handles, downloads and archives: from what the user names to a local path."""
