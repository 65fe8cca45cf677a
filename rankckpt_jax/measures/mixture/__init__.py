"""Gaussian mixtures and k-means."""
