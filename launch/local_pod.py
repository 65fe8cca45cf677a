#!/usr/bin/env python3
"""Runs a config in several processes on this machine, like a pod.

    python launch/local_pod.py --processes 2 --devices 2 -- --config=configs/demo.py

Each process gets --devices CPU devices. Process 0 prints its output; the output of
another process is printed if it fails. The exit code is the highest of all processes.
SIGTERM is passed on to all of them.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile


def main() -> int:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Arguments after -- go to rankckpt_jax.main.",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="per process")
    parser.add_argument("arguments", nargs="*")
    args = parser.parse_args()
    if args.processes < 1 or args.devices < 1:
        parser.error("--processes and --devices must be at least 1")

    environment = dict(os.environ, JAX_PLATFORMS="cpu")
    flags = environment.get("XLA_FLAGS", "")
    environment["XLA_FLAGS"] = (
        f"{flags} --xla_force_host_platform_device_count={args.devices}".strip()
    )
    coordinator = f"localhost:{_free_port()}"
    started = []
    with tempfile.TemporaryDirectory() as logs:
        for process in range(args.processes):
            command = [sys.executable, "-m", "rankckpt_jax.main", *args.arguments]
            if args.processes > 1:
                command += [
                    f"--config.distributed.coordinator={coordinator}",
                    f"--config.distributed.num_processes={args.processes}",
                    f"--config.distributed.process_id={process}",
                ]
            path = os.path.join(logs, str(process))
            with open(path, "wb") as log:
                output = None if process == 0 else log
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=output, stderr=output
                    )
                )

        def pass_on(number: int, frame: object) -> None:
            del frame
            for child in started:
                if child.poll() is None:
                    child.send_signal(number)

        signal.signal(signal.SIGTERM, pass_on)
        try:
            codes = [child.wait() for child in started]
        except KeyboardInterrupt:
            pass_on(signal.SIGKILL, None)
            codes = [child.wait() for child in started]
        for process, code in enumerate(codes):
            if code and process:
                print(f"process {process} exited with {code}:", file=sys.stderr)
                with open(os.path.join(logs, str(process)), errors="replace") as log:
                    sys.stderr.writelines(log.readlines()[-20:])
    # The code of a child that was killed by a signal is negative.
    return max(abs(code) if code >= 0 else 128 - code for code in codes)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("localhost", 0))
        return int(bound.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
