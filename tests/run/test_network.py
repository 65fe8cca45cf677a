import dataclasses
import types

from etils import epath

from rankckpt_jax.benchmark import demo
from rankckpt_jax.checkpoints.description import describe
from rankckpt_jax.run import network
from rankckpt_jax.run.pool import Member


@dataclasses.dataclass(frozen=True)
class Downloaded(Member):
    """A checkpoint whose identity is known once it was loaded."""

    downloads: list[str] = dataclasses.field(default_factory=list)

    def identify(self):
        return "".join(self.downloads[:1])


def test_open_network_stores_the_description_after_a_download(tmp_path):
    downloads: list[str] = []

    def load():
        downloads.append("digest")
        return demo.from_scratch("mobilenet_v1_025", 32, seed=0)

    config = {"image_size": 32, "use_moving_averages": False, "torch_engine": "jax"}
    context = types.SimpleNamespace(
        directory=epath.Path(tmp_path), config=config, torch_engine="jax"
    )
    for _ in range(2):
        member = Downloaded("net", load, spec="zoo:net", downloads=downloads)
        found = network.open_network(context, member, "net", lambda *_: None)
        assert found.description.architecture == "mobilenet_v1_025"
    assert downloads == ["digest"]


def test_load_weight_spectra_reads_the_weights_once(tmp_path):
    backbone = demo.from_scratch("mobilenet_v1_025", 32, seed=0)
    context = types.SimpleNamespace(directory=epath.Path(tmp_path))
    loads, events = [], []

    def load():
        loads.append(1)
        return backbone

    opened = network.Network(describe(backbone), load)
    member = Member("net", load)
    one, other = (
        network.load_weight_spectra(
            context, member, opened, "net", lambda *event: events.append(event)
        )
        for _ in range(2)
    )
    assert one == other and len(loads) == 1
    # A convolution and 13 pointwise ones. Depthwise ones have no spectrum.
    assert len(one["layers"]) == 14 and len(one["left_out"]) == 13
    (work, seconds), (_, stored) = events
    assert work == "weight spectra" and seconds > 0 and stored is None
    fresh = dataclasses.replace(opened.description, fingerprint="other weights")
    opened = network.Network(fresh, load)
    network.load_weight_spectra(context, member, opened, "net", lambda *event: None)
    assert len(loads) == 2
