"""Runs a benchmark's inner program in a test kernel and brings back what it measured."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

BENCH_D = Path(__file__).resolve().parent.parent
KERNEL = "7.3"
GUEST_S = 1800
MAPPINGS_MAX = Path("/proc/sys/vm/max_map_count")
MAPPINGS_WANTED = 1 << 20


def run(program, plan, qemu=False, seconds=GUEST_S, mem="4G"):
    """Runs `in_guest/PROGRAM` there with `plan`; what it wrote as its result."""
    with tempfile.TemporaryDirectory(prefix="blockferry-bench.") as out:
        (Path(out) / "plan.json").write_text(json.dumps(plan))
        environment = {name: os.environ[name] for name in ("BLOCKFERRY", "RUBLK") if os.environ.get(name)}
        inner = " ".join([
            "env", "PYTHONDONTWRITEBYTECODE=1", f"PYTHONPATH={shlex.quote(str(BENCH_D))}",
            *(f"{name}={shlex.quote(value)}" for name, value in environment.items()),
            "python3", shlex.quote(str(BENCH_D / "in_guest" / program)),
        ])
        command = [_vm(), "--kernel", KERNEL, *(["--qemu"] if qemu else []), "--seconds", str(seconds), "--mem", mem, "--out", out, inner]
        with contextlib.nullcontext() if qemu else _many_mappings():
            done = subprocess.run(command, stdout=sys.stderr)
        result = Path(out) / "result.json"
        if done.returncode != 0 or not result.exists():
            sys.exit(f"bench: the test kernel's run failed with status {done.returncode}")
        return json.loads(result.read_text())


@contextlib.contextmanager
def _many_mappings():
    """Raises this machine's limit of mappings a process for the time of a run. User Mode Linux maps a page at a time: a process
    there that touches more than 256 MiB meets the usual limit of 65530, and its page faults then never end."""
    before = int(MAPPINGS_MAX.read_text())
    if before >= MAPPINGS_WANTED:
        yield
        return
    try:
        MAPPINGS_MAX.write_text(f"{MAPPINGS_WANTED}\n")
    except OSError as error:
        sys.exit(f"bench: User Mode Linux needs more mappings; as root: sysctl -w vm.max_map_count={MAPPINGS_WANTED} ({error})")
    try:
        yield
    finally:
        MAPPINGS_MAX.write_text(f"{before}\n")


def _vm():
    return os.environ.get("BLOCKFERRY_VM") or str(BENCH_D.parent / "vm")


def plan():
    """In the guest: what to do."""
    return json.loads((Path(os.environ["OUT"]) / "plan.json").read_text())


def answer(result):
    """In the guest: hands the result back, whole."""
    partial = Path(os.environ["OUT"]) / "result.part"
    partial.write_text(json.dumps(result))
    partial.rename(partial.with_name("result.json"))
