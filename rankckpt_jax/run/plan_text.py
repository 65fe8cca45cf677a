"""A plan as text."""

from __future__ import annotations

import collections
import textwrap
from collections.abc import Iterator

from rankckpt_jax.devices.work import KINDS
from rankckpt_jax.errors import some
from rankckpt_jax.features import blocks
from rankckpt_jax.measures import cost
from rankckpt_jax.report import terminal
from rankckpt_jax.results.formatting import count, format_large, format_seconds
from rankckpt_jax.run.plan import Plan
from rankckpt_jax.run.plan_phases import Phase, Row

DECODING_SECONDS = 3.0e-3
"""Seconds of one host thread per decoded image; see docs/performance.md."""

_WIDTH = 100


def to_text(plan: Plan) -> str:
    """Return a plan as plain text: its phases, their sum and what they leave out."""
    blocks = [_title(plan), *(_table(phase) for phase in plan.phases), _sum(plan)]
    blocks += ["\n".join(_advice(plan)), _list("Not planned", _unplanned(plan))]
    blocks += [
        _list("Assumed", _assumptions(plan)),
        _list("Not included", _unknowns(plan)),
    ]
    return "\n\n".join(block for block in blocks if block)


def _title(plan: Plan) -> str:
    peak, task = plan.peak, plan.task
    rate = max(peak.flops.values())
    kind = next(kind for kind in KINDS if peak.flops[kind] == rate)
    source = "measured here" if peak.is_measured else "published"
    lines = [
        f"Plan of {task.name} for {plan.topology}: {plan.devices} x {peak.name}, each "
        f"{rate / 1e12:.3g} TFLOP/s ({'float32' if peak.is_measured else kind}), "
        f"{peak.bandwidth / 1e9:,.3g} GB/s ({source}), {_bytes(peak.memory)} for "
        "programs",
        task.description,
        f"{count(len(plan.pool.networks) + len(plan.pool.features), 'checkpoint')} "
        f"planned, {len(plan.pool.unplanned)} not planned",
    ]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, _WIDTH))


def _table(phase: Phase) -> str:
    header = [
        *("measures" if phase.name == "Measures" else "network", phase.unit),
        *("checkpoints", "memory", "verdict", "FLOP", "traffic", "time each", "all"),
    ]
    lines = [header, *(_cells(row) for row in phase.rows)]
    checkpoints = str(sum(row.checkpoints for row in phase.rows))
    if phase.name == "Measures":
        checkpoints = ""
    total = phase.work
    lines.append(
        [
            *("sum", "", checkpoints, "", ""),
            *(_large(total.total_flop), _bytes(total.bytes), ""),
            _seconds(phase.seconds),
        ]
    )
    about = textwrap.wrap(f"{phase.name} of each checkpoint: {phase.about}", _WIDTH)
    return "\n".join([*about, terminal.align(lines, left=[0, 4])])


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        str(row.size),
        str(row.checkpoints),
        _bytes(row.peak_bytes),
        row.verdict,
        _large(row.work.total_flop),
        _bytes(row.work.bytes),
        _seconds(row.seconds),
        _seconds(row.seconds * row.checkpoints),
    ]


def _sum(plan: Plan) -> str:
    parts = [f"{phase.name.lower()} {_seconds(phase.seconds)}" for phase in plan.phases]
    seconds = sum(phase.seconds for phase in plan.phases)
    flop = sum(phase.work.total_flop for phase in plan.phases)
    chips = _seconds(seconds * plan.devices)
    text = (
        f"The pool: {_seconds(seconds)} at peak rates ({', '.join(parts)}), "
        f"{_large(flop)} FLOP, {chips} of devices."
    )
    return "\n".join(textwrap.wrap(text, _WIDTH))


def _advice(plan: Plan) -> Iterator[str]:
    """Yield a sentence for each program that does not fit."""
    fields = {
        "Extraction": "--config.batch_size={}",
        "Fine-tuning": "--config.finetune.batch_size={}, or the same batch in parts "
        "with --config.finetune.accumulate=2 or more",
    }
    for phase in plan.phases:
        for row in phase.rows:
            if row.largest is None:
                continue
            title = f"{phase.name} of {row.name} runs out of memory"
            if not row.largest.size:
                yield f"{title} at any batch."
                continue
            source = "compiled" if row.largest.is_verified else "extrapolated"
            size = row.largest.size
            field = fields[phase.name].format(size)
            yield f"{title}. The largest batch is {size} ({source}): {field}"


def _unplanned(plan: Plan) -> list[str]:
    reasons = collections.defaultdict(list)
    for name, reason in plan.pool.unplanned.items():
        reasons[reason].append(name)
    return [f"{some(names)}: {reason}" for reason, names in reasons.items()]


def _assumptions(plan: Plan) -> list[str]:
    lines = [
        "Each program takes as long as its arithmetic or its memory traffic needs at "
        "the peak rate, whichever is longer. A real run usually takes several times as "
        "long. It can be faster where the traffic stays on the chip or in a cache.",
        "FLOP are those of convolutions and matrix products, with padded images.",
        f"All {plan.devices} devices belong to one process. With several, "
        "config.batch_size counts per process.",
    ]
    phases = {phase.name: phase for phase in plan.phases}
    if "Measures" in phases:
        lines.append(
            "Measures follow formulas. For NLEEP, PCA keeps at most "
            f"{cost.PCA_DIMENSIONS} dimensions, k-means and EM take "
            f"{cost.EM_ITERATIONS} iterations each. Memory is that of EM for many "
            "images per component."
        )
    if "Fine-tuning" in phases:
        lines.append("No trial diverges, and every checkpoint's batch norm is intact.")
    if plan.race:
        lines.append(
            "All images of each checkpoint are extracted. A race extracts a part of "
            "the images of those that it drops, and scores its rounds too."
        )
    if plan.features_from not in (blocks.LAST, "blocks"):
        lines.append(
            "Every block counts in config.features_from=last,blocks, and all measures "
            "score it. A block that equals the last features, and measures that read "
            "logits only, are not scored again."
        )
    if any(name.endswith("_res50") or "_res50-" in name for name in plan.pool.networks):
        lines.append("NeuCRaB's ResNet-50 without a version is counted as version 1.")
    return lines


def _unknowns(plan: Plan) -> list[str]:
    lines = []
    if plan.decoded:
        seconds = _seconds(plan.decoded * DECODING_SECONDS)
        lines.append(
            f"Decoding of images. At {DECODING_SECONDS * 1e3:g} ms per image and host "
            f"thread, which holds for small JPEG files, {plan.decoded:,} images take "
            f"{seconds} of one thread (each image once per size, kept on disk)."
        )
    lines += [
        "Compiling for the devices, downloads, reading weights, and transfers between "
        "host and devices, or between devices.",
    ]
    if any(phase.name == "Measures" for phase in plan.phases):
        lines.append("Decompositions of measures, which the host computes.")
    return lines


def _list(title: str, lines: list[str]) -> str:
    wrapped = [
        textwrap.fill(line, _WIDTH, initial_indent="- ", subsequent_indent="  ")
        for line in lines
    ]
    return "\n".join([f"{title}:", *wrapped]) if wrapped else ""


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.1f} ms"
    return format_seconds(seconds)


def _large(number: float) -> str:
    return format_large(number).replace("\N{NO-BREAK SPACE}", " ")


def _bytes(number: float) -> str:
    if number == float("inf"):
        return "more"
    return f"{_large(number)}B" if number >= 1e3 else f"{number:.0f} B"
