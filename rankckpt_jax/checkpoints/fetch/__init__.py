"""Handles, downloads and archives."""
