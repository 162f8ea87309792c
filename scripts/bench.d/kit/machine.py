"""What a figure depends on besides the program: machine, kernels, versions, date."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent


def facts():
    """Names and values, in the order they are printed."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "memory": f"{_memory_gib()} GiB",
        "kernel": f"Linux {platform.release().split('-')[0]}",
        "blockferry": _revision(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def peers():
    """The versions of the programs measured beside ours."""
    return {"fio": _version("fio"), "rublk": _rublk(), "nbdkit": _version("nbdkit")}


def _processor():
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} CPUs"


def _memory_gib():
    kib = int(re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)[1])
    return round(kib / (1 << 20))


def _revision():
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    commit = _first_line(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    changed = _first_line(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "src", "Cargo.lock"])
    return f"{version}, commit {commit}{' with changes' if changed else ''}" if commit else version


def _rublk():
    """rublk does not tell its version; the installation's record does."""
    record = Path(os.environ.get("RUBLK", "/")).parent.parent / ".crates.toml"
    found = re.search(r'"rublk ([\d.]+)', record.read_text()) if record.exists() else None
    return found[1] if found else "unknown"


def _version(program):
    found = re.search(r"\d+\.\d[\w.]*", _first_line([program, "--version"]))
    return found[0] if found else "unknown"


def _first_line(command):
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except OSError:
        return ""
    return said.partition("\n")[0].strip()
