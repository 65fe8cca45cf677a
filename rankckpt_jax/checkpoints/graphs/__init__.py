"""TensorFlow graphs as JAX functions."""
