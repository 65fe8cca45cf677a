import jax
import jax.numpy as jnp

from rankckpt_jax.devices import profiling


def traces(folder):
    return sorted(
        path.parts[-5] for path in folder.glob("*/plugins/profile/*/*.xplane.pb")
    )


def test_run_traces_each_step_once(tmp_path, caplog):
    calls = []

    def square(x):
        calls.append(x)
        return x * x

    assert profiling.run("step", square, 2) == 4
    profiling.run_again("step", square, 2)
    assert len(calls) == 1 and not list(tmp_path.iterdir())
    with caplog.at_level("INFO"), profiling.profile(str(tmp_path)):
        assert profiling.run("step", square, 3) == 9
        assert profiling.run("step", square, 4) == 16
        profiling.run_again("step", square, 5)
        profiling.run_again("other", jax.jit(square), jnp.ones(3))
    assert calls[:3] == [2, 3, 4] and len(calls) == 4
    assert traces(tmp_path) == ["other", "step"]
    assert f"Profile: {tmp_path} (step, other)" in caplog.text


def test_profile_of_no_step_states_the_reason(tmp_path, caplog):
    with caplog.at_level("INFO"), profiling.profile(str(tmp_path)):
        pass
    assert "no step, because all results were cached" in caplog.text
