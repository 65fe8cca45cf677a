"""Nothing that a run writes contains passwords or keys."""

import logging

import numpy as np
import pytest

from rankckpt_jax import main
from rankckpt_jax.errors import InputError, redact

SECRETS = {
    "https://user:hunter2@host/a.zip": "https://[hidden]@host/a.zip",
    "https://hunter2@host:8080/a.zip": "https://[hidden]@host:8080/a.zip",
    "https://user:hunt@er2@host/x": "https://[hidden]@host/x",
    "gs://bucket/a?X-Goog-Signature=hunter2": "gs://bucket/a?X-Goog-Signature=[hidden]",
    "https://h/a?sv=1&sig=hunter2#output=x": (
        "https://h/a?sv=[hidden]&sig=[hidden]#output=x"
    ),
    "with url: /a.zip?token=hunter2 (refused)": (
        "with url: /a.zip?token=[hidden] (refused)"
    ),
    "a/b,https://u:hunter2@h/x.zip!/run,c": "a/b,https://[hidden]@h/x.zip!/run,c",
}
PLAIN = (
    "https://host/a.zip?download=1: not found",
    "https://tfhub.dev/vtab/sup-100/1?tf-hub-format=compressed",
    "https://host:8080/a.zip!/run/model.ckpt-300#signature=default&output=pre_logits",
    "C:/x/a@b.zip, mail@host, runs/*/net?.ckpt, did you mean 'x'? a=b",
    "one input [?, 3]: a=1&b=2",
)


@pytest.mark.parametrize("text", SECRETS)
def test_redact_hides_secrets_only(text):
    assert redact(text) == SECRETS[text]
    assert redact(SECRETS[text]) == SECRETS[text]


@pytest.mark.parametrize("text", PLAIN)
def test_redact_keeps_text_without_secrets(text):
    assert redact(text) == text


def test_redact_hides_fields_of_nested_data():
    address = "https://user:hunter2@host/{path}"
    redacted = redact(
        {
            "mirrors": (address,),
            "hub_token": "hunter2",
            "inner": [{"password": "hunter2", "size": 3, "tokens": 7}],
            "password": "",
            "seed": 1,
        }
    )
    assert "hunter2" not in repr(redacted)
    assert redacted["mirrors"] == ("https://[hidden]@host/{path}",)
    assert redacted["inner"][0]["size"] == 3 and redacted["seed"] == 1
    assert redacted["inner"][0]["tokens"] == 7 and redacted["password"] == ""


def test_input_error_hides_secrets():
    address = "https://user:hunter2@host/a?key=hunter2"
    error = InputError(
        f"{address} failed",
        where=address,
        expected=address,
        found=address,
        fix=address,
    )
    assert "hunter2" not in str(error) + error.what
    assert str(error).count("https://[hidden]@host/a?key=[hidden]") == 5


def test_run_writes_no_secrets(tmp_path, monkeypatch, caplog):
    """Secrets of the config and of the environment."""
    from rankckpt_jax.configs import features
    from rankckpt_jax.run import run as run_lib

    monkeypatch.setenv("HUB_TOKEN", "hunter2")
    labels = np.arange(40) % 2
    for name in "ab":
        drawn = np.random.default_rng(ord(name)).normal(size=(40, 4))
        np.savez(tmp_path / f"{name}.npz", features=drawn, labels=labels)
    config = features.get_config()
    config.features = str(tmp_path)
    config.workdir = str(tmp_path / "runs")
    config.measures = "h_score"
    config.track = "tensorboard"
    config.checkpoints = "https://user:hunter2@host/pool.zip?Signature=hunter2"
    config.download.mirrors = ("https://user:hunter2@mirror/{path}",)
    ranking = run_lib.run(config)
    assert "hunter2" not in str(ranking) + caplog.text + repr(ranking.provenance)
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in written)
    for path in written:
        assert b"hunter2" not in path.read_bytes(), path
        assert "hunter2" not in str(path)
    (page,) = (tmp_path / "runs").rglob("report.html")
    assert "https://[hidden]@host/pool.zip?Signature=[hidden]" in page.read_text()


def test_logs_and_tracebacks_hide_secrets(capsys):
    handlers = logging.getLogger().handlers
    level = logging.getLogger("rankckpt_jax").level
    try:
        main._configure_logging()
        logging.getLogger("elsewhere").warning("%s", "https://user:hunter2@host/a")
    finally:
        logging.getLogger().handlers = handlers
        logging.getLogger("rankckpt_jax").setLevel(level)
    try:
        raise ValueError("https://user:hunter2@host/a")
    except ValueError as error:
        main._print_redacted(type(error), error, error.__traceback__)
    text = capsys.readouterr().err
    assert text.count("https://[hidden]@host/a") == 3 and "hunter2" not in text
