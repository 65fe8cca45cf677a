"""Checkpoint files of TensorFlow, read without TensorFlow."""
