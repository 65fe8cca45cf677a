import os
import platform
import re
import subprocess
import sys

import pytest

from rankckpt_jax import large_pages

MODE = "always [madvise] never\n"
GLIBC = ("glibc", "2.36")

# Tells what it was started with, its process, and its memory that is in large pages.
PROGRAM = """
import os, pathlib, re, sys
from rankckpt_jax import large_pages
pid = os.getpid()
print("begun", pid, flush=True)
large_pages.restart_with_large_pages()
memory = bytearray(64 << 20)
memory[:] = bytes(1) * len(memory)
rollup = pathlib.Path("/proc/self/smaps_rollup")
print("tunables", os.environ.get("GLIBC_TUNABLES", ""))
print("arguments", sys.argv[1:], sys.flags.optimize)
if rollup.exists():
    print("large", re.search(r"AnonHugePages: +([0-9]+) kB", rollup.read_text())[1])
"""


def start(**environment):
    kept = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-O", "-c", PROGRAM, "--a b", "c"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**kept, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asks_where_the_system_grants_large_pages_to_who_asks():
    asked = large_pages._environment({"HOME": "/h"}, MODE, GLIBC)
    assert asked == {"HOME": "/h", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_keeps_the_other_tunables():
    current = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    asked = large_pages._environment(current, MODE, GLIBC)
    expected = "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    assert asked == {"GLIBC_TUNABLES": expected}
    assert current == {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}


@pytest.mark.parametrize("value", ["0", "1", "2"])
def test_what_the_environment_says_stands(value):
    current = {"GLIBC_TUNABLES": f"a.b=1:glibc.malloc.hugetlb={value}"}
    assert large_pages._environment(current, MODE, GLIBC) is None


@pytest.mark.parametrize(
    ("mode", "libc"),
    [
        ("[always] madvise never\n", GLIBC),
        ("always madvise [never]\n", GLIBC),
        ("", GLIBC),
        (MODE, ("glibc", "2.34")),
        (MODE, ("glibc", "2.9")),
        (MODE, ("glibc", "")),
        (MODE, ("", "")),
        (MODE, ("libc", "1.2")),
    ],
)
def test_leaves_alone_where_it_would_not_help(mode, libc):
    assert large_pages._environment({}, mode, libc) is None


def test_a_program_starts_anew_once_as_the_same_process_with_its_arguments():
    asked = large_pages._environment({}, large_pages._mode(), platform.libc_ver())
    if asked is None:
        pytest.skip("this system grants no large pages to who asks")
    told = start()
    begun = re.findall(r"begun (\d+)", told)
    assert len(begun) == 2 and begun[0] == begun[1]
    assert "tunables glibc.malloc.hugetlb=1\n" in told
    assert "arguments ['--a b', 'c'] 1\n" in told
    assert int(re.search(r"large (\d+)", told)[1]) >= 32 << 10


def test_a_program_that_is_told_not_to_goes_on_as_it_is():
    told = start(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert told.count("begun") == 1
    assert "tunables glibc.malloc.hugetlb=0\n" in told


def test_goes_on_where_the_system_refuses(monkeypatch):
    def refuse(*arguments):
        called.append(arguments)
        raise OSError("no")

    called = []
    monkeypatch.setattr(os, "execve", refuse)
    monkeypatch.setattr(large_pages, "_environment", lambda *_: {"A": "1"})
    large_pages.restart_with_large_pages()
    (program, arguments, environment) = called[0]
    assert program == arguments[0] == sys.executable
    assert arguments[1:] == sys.orig_argv[1:] and environment == {"A": "1"}
