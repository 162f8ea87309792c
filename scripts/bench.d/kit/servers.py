"""The block devices under test: each starts, says its path and the processes that serve it, and stops.

All that have queues get one of them with 128 tags, and no I/O scheduler."""

import contextlib
import os
import re
import select
import subprocess
import time
from pathlib import Path

from kit.fio import WORKING_SET_MIB

QUEUES = 1
DEPTH = 128
START_S = 30
FILL_BLOCK = os.urandom(1 << 20)
MAKE_FILE_SYSTEM = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}


class Server:
    """A block device and who serves it."""

    label = ""
    holds_data = True

    def start(self):
        """Makes the device and returns its path."""
        raise NotImplementedError

    def stop(self):
        """Takes the device away."""
        raise NotImplementedError

    def pids(self):
        """The user processes that serve requests; none for a kernel driver."""
        return []


class NullBlk(Server):
    """The kernel's null_blk: the block layer alone, no server."""

    holds_data = False

    def __init__(self, label, backed_mib=0):
        self.label, self.backed_mib = label, backed_mib
        self.folder = Path("/sys/kernel/config/nullb") / re.sub(r"\W", "", label)

    def start(self):
        modprobe("null_blk", "nr_devices=0")
        self.folder.mkdir()
        for name, value in {
            "submit_queues": QUEUES, "hw_queue_depth": DEPTH, "irqmode": 0, "size": self.backed_mib or WORKING_SET_MIB,
            "memory_backed": int(bool(self.backed_mib)), "power": 1,
        }.items():
            (self.folder / name).write_text(f"{value}\n")
        path = f"/dev/nullb{(self.folder / 'index').read_text().strip()}"
        return path if Path(path).exists() else f"/dev/{self.folder.name}"

    def stop(self):
        (self.folder / "power").write_text("0\n")
        self.folder.rmdir()


class KernelLoop(Server):
    """The kernel's loop device on a file."""

    def __init__(self, label, file):
        self.label, self.file = label, file

    def start(self):
        modprobe("loop")
        self.path = output(["losetup", "--find", "--show", "--direct-io=on", self.file]).strip()
        return self.path

    def stop(self):
        output(["losetup", "--detach", self.path])


class Rublk(Server):
    """rublk, the sample ublk server."""

    def __init__(self, label, *target):
        self.label, self.target = label, target
        self.holds_data = target[0] != "null"

    def start(self):
        modprobe("ublk_drv")
        said = output([rublk(), "add", *self.target, "-q", str(QUEUES), "-d", str(DEPTH)])
        self.number = int(re.search(r"dev id (\d+)", said)[1])
        self.pid = int(re.search(r"daemon pid (\d+)", said)[1])
        return f"/dev/ublkb{self.number}"

    def stop(self):
        # Its server may delete the device first, and `del` then fails: what counts is that the device goes.
        subprocess.run([rublk(), "del", "-n", str(self.number)], capture_output=True, timeout=START_S)
        wait_for(lambda: not Path(f"/dev/ublkc{self.number}").exists(), f"the end of /dev/ublkc{self.number}")

    def pids(self):
        return [self.pid]


class KernelNbd(Server):
    """The kernel's nbd driver on nbdkit's memory plugin, over a unix socket."""

    socket = "/tmp/bench-nbd.sock"

    def __init__(self, label):
        self.label = label

    def start(self):
        modprobe("nbd")
        self.server = subprocess.Popen(["nbdkit", "-f", "-U", self.socket, "memory", f"{WORKING_SET_MIB}M"])
        wait_for(lambda: Path(self.socket).exists(), "nbdkit's socket")
        output(["nbd-client", "-unix", self.socket, "/dev/nbd0"])
        return "/dev/nbd0"

    def stop(self):
        output(["nbd-client", "-d", "/dev/nbd0"])
        end(self.server)

    def pids(self):
        return [self.server.pid]


class Blockferry(Server):
    """Ours: a direct mount of a resource."""

    def __init__(self, label, url, *options, environment=None):
        self.label, self.url, self.options = label, url, options
        self.environment = os.environ | (environment or {})

    def start(self):
        modprobe("ublk_drv")
        self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, text=True, env=self.environment)
        return first_line(self.process)

    def command(self):
        """What is run."""
        return [blockferry(), "mount", self.url, "--direct", "--queues", str(QUEUES), "--depth", str(DEPTH), *self.options]

    def stop(self):
        end(self.process)

    def pids(self):
        return [self.process.pid]


class Managed(Blockferry):
    """Ours: a managed mount of a file that another process of this machine serves, all of it local before the device is there."""

    holds_data = False  # it has the origin's
    port = 4480

    def __init__(self, label, origin, cache, *options):
        super().__init__(label, "", *options)
        self.origin, self.cache = origin, cache

    def start(self):
        self.server = subprocess.Popen(
            [blockferry(), "serve", f"file:{self.origin}", "--listen", f"127.0.0.1:{self.port}", "--state-dir", f"{self.cache}.server"],
            stdout=subprocess.PIPE, text=True,
        )
        try:
            self.url = first_line(self.server)
            return super().start()
        except RuntimeError:
            end(self.server)
            raise

    def command(self):
        return [
            blockferry(), "mount", self.url, "--cache", self.cache, "--pull-first",
            "--queues", str(QUEUES), "--depth", str(DEPTH), *self.options,
        ]

    def stop(self):
        super().stop()
        end(self.server)


def blockferry():
    """Our program, as the environment names it."""
    return os.environ["BLOCKFERRY"]


def rublk():
    """The peer's program, as the environment names it."""
    return os.environ["RUBLK"]


def start_all(servers):
    """Starts each; returns the devices' paths by label, and why those that did not start did not."""
    paths, missing = {}, {}
    for server in servers:
        try:
            path = server.start()
            wait_for(lambda: Path(path).exists(), path)
            without_scheduler(path)
            if server.holds_data:
                fill(path)
            paths[server.label] = path
        except (OSError, RuntimeError, TypeError) as error:
            missing[server.label] = str(error)
    return paths, missing


def stop_all(servers):
    """Stops each, in reverse."""
    for server in reversed(servers):
        try:
            server.stop()
        except (OSError, RuntimeError) as error:
            print(f"{server.label} did not stop: {error}", flush=True)


def fill(path):
    """Writes every block of the working set, so that no read meets a hole."""
    with open(path, "r+b" if Path(path).exists() else "wb", buffering=0) as target:
        for _ in range(WORKING_SET_MIB):
            target.write(FILL_BLOCK)
        os.fsync(target.fileno())


@contextlib.contextmanager
def memory_disk(kind, size_mib):
    """A file system of its own, on a disk in memory."""
    disk = NullBlk(f"disk-{kind}", backed_mib=size_mib)
    path = disk.start()
    folder = Path("/tmp") / f"bench-{kind}"
    folder.mkdir()
    output([*MAKE_FILE_SYSTEM[kind], path])
    output(["mount", path, str(folder)])
    yield str(folder)
    output(["umount", str(folder)])
    disk.stop()


def without_scheduler(path):
    """Takes the I/O scheduler out of the way of a block device."""
    knob = Path("/sys/block") / Path(path).name / "queue/scheduler"
    if knob.exists():
        knob.write_text("none\n")


def modprobe(name, *options):
    """Loads a driver; where it is built in this fails, and starting the device tells the rest."""
    subprocess.run(["modprobe", name, *options], capture_output=True)


def output(command):
    """Runs a command; its standard output, or an error that quotes it."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def first_line(process):
    """The first line that a process prints, which is how it says that it is ready."""
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline().strip() if ready else ""
    if not line:
        process.kill()
        raise RuntimeError(f"{' '.join(process.args)}: not ready (exit status {process.wait()})")
    return line


def wait_for(condition, what):
    """Polls a condition with a generous deadline."""
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not there after {START_S} s")
        time.sleep(0.01)


def end(process):
    """Ends a process that was started here."""
    process.terminate()
    try:
        process.wait(START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
