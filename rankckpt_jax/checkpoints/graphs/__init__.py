"""TensorFlow graphs -> JAX through tf2jax."""
