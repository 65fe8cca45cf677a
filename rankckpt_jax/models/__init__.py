"""The networks in Flax linen, by their TF-Slim names.

    module = models.create("mobilenet_v1_025", num_classes=0)
    variables = module.init(jax.random.key(0), images)
    features = module.apply(variables, images).features

A family is one file that registers its table of networks; importing it here adds it.
"""

from rankckpt_jax.models import (
    inception_resnet_v2,
    inception_v1,
    inception_v2,
    inception_v3,
    inception_v4,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    resnet,
    vtab_resnet,
)
from rankckpt_jax.models.architecture import (
    Architecture,
    create,
    default_image_size,
    feature_dim,
    get,
    input_mean,
    input_range,
    minimum_image_size,
    names,
)
from rankckpt_jax.models.cost import multiply_adds, num_parameters
from rankckpt_jax.models.layers import Output, endpoints

__all__ = [
    "Architecture",
    "Output",
    "create",
    "default_image_size",
    "endpoints",
    "feature_dim",
    "get",
    "input_mean",
    "input_range",
    "minimum_image_size",
    "inception_resnet_v2",
    "inception_v1",
    "inception_v2",
    "inception_v3",
    "inception_v4",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "resnet",
    "vtab_resnet",
    "multiply_adds",
    "names",
    "num_parameters",
]
