"""The networks in Flax linen, by their TF-Slim names.

    module = models.create("mobilenet_v1_025", num_classes=0)
    variables = module.init(jax.random.key(0), images)
    features = module.apply(variables, images).features

To add a family, add one file that calls `architecture.register`. Every file of this
directory is imported here.
"""

import importlib
import pkgutil

from rankckpt_jax.models.architecture import Architecture, create, get, names
from rankckpt_jax.models.cost import multiply_adds
from rankckpt_jax.models.layers import Output, endpoints

__all__ = [
    "Architecture",
    "Output",
    "create",
    "endpoints",
    "get",
    "multiply_adds",
    "names",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
