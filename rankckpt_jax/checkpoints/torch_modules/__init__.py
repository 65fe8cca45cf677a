"""PyTorch modules -> `Backbone`s. The only place that imports torchax."""
