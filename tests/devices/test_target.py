import jax
import jax.numpy as jnp

from rankckpt_jax.devices import mapping, target


class Device:
    platform = "cuda"


def test_platform_is_that_of_the_process():
    assert target.platform() == jax.default_backend()
    assert list(target.local_devices()) == jax.local_devices()


def test_compile_for_replaces_platform_and_devices():
    with target.compile_for([Device(), Device()]):
        assert target.platform() == "gpu"
        assert mapping.local_device_count() == 2
    assert target.platform() == jax.default_backend()
    assert mapping.local_device_count() == jax.local_device_count()


def test_compile_for_drops_traces():
    platforms = []

    @jax.jit
    def function(x):
        platforms.append(target.platform())
        return x + 1

    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    function.trace(shape)
    with target.compile_for([Device()]):
        function.trace(shape)
        function.trace(shape)
    function.trace(shape)
    assert platforms == [jax.default_backend(), "gpu", jax.default_backend()]
