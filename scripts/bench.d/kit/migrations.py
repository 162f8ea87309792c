"""Both ends of a migration as processes of this machine, the link between them, and who uses the volume meanwhile."""

import contextlib
import json
import mmap
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

from kit import servers

ADDRESS = "10.77.0.1"
LEECH_S = 180
BLOCK = 4096
PIECE = 1 << 20


def program(name):
    """One of our examples, beside the program."""
    path = Path(servers.blockferry()).parent / "examples" / name
    if not path.exists():
        raise RuntimeError(f"there is no {path}; build it with `cargo build --release --examples`")
    return str(path)


def make_volume(path, mib, data_share=1.0):
    """A file of noise; with a share below 1 the rest are holes, spread evenly."""
    piece = bytearray(os.urandom(PIECE))
    every = round(1 / data_share)
    with open(path, "wb", buffering=0) as volume:
        volume.truncate(mib << 20)
        for number in range(0, mib, every):
            piece[:8] = number.to_bytes(8, "little")
            volume.seek(number * PIECE)
            volume.write(piece)
        os.fsync(volume.fileno())


class World:
    """A folder for both hosts, and a link of a rate and a delay between them."""

    def __init__(self, folder, rtt_ms, rate_mbit, queue_kib, politely=False):
        """`politely`: leecher and link get the time that nobody else of this machine wants, as those of another one would take none."""
        self.folder, self.rtt_ms, self.rate_mbit, self.queue_kib = Path(folder), rtt_ms, rate_mbit, queue_kib
        self.polite = ["chrt", "--idle", "0"] if politely else []
        self.environment = os.environ | {"BLOCKFERRY_RUN_DIR": str(self.folder / "run"), "XDG_STATE_HOME": str(self.folder / "state")}

    @contextlib.contextmanager
    def seeder(self, volume):
        """Seeds a file; gives its device, and who leeches it finds the ticket."""
        Path(f"{volume}.blockferry").unlink(missing_ok=True)
        ticket = self.folder / "ticket"
        process = self._start("seed", f"file:{volume}", "--listen", f"{ADDRESS}:0", "--name", "seeder", "--device", "fuse",
                              "--ticket-file", str(ticket), "--state-dir", str(self.folder / "seeder"))
        relay = None
        try:
            device = servers.first_line(process)
            process.stdout.readline()  # the ticket, which is in its file as well
            head, _, rest = ticket.read_text().strip().partition(f"{ADDRESS}:")
            port, _, rest = rest.partition("/")
            relay = subprocess.Popen(
                [*self.polite, program("link_relay"), "--listen", f"{ADDRESS}:0", "--to", f"{ADDRESS}:{port}", "--rtt-ms", str(self.rtt_ms),
                 "--rate-mbit", str(self.rate_mbit), "--queue-kib", str(self.queue_kib)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.ticket = f"{head}{servers.first_line(relay)}/{rest}"
            yield device
        finally:
            servers.end(process)
            if relay:
                relay.stdin.close()
                servers.end(relay)

    @contextlib.contextmanager
    def leecher(self, store, *options, new=True):
        """Leeches into a file; gives the process. What it has made is removed, unless `new` is false."""
        if new:
            self.forget(store)
        process = self._start("leech", self.ticket, "--store", f"file:{store}", "--name", "leecher", "--device", "fuse", *options)
        try:
            yield process
        finally:
            servers.end(process)
            if new:
                self.forget(store)

    def forget(self, store):
        """Removes a store and its record."""
        for path in (store, f"{store}.blockferry"):
            Path(path).unlink(missing_ok=True)

    def say(self, *words):
        """An order to one of the ends; what it prints."""
        return subprocess.run([servers.blockferry(), *words], env=self.environment, capture_output=True, text=True, timeout=servers.START_S).stdout

    def status(self, name="leecher"):
        """What an end says of the migration."""
        said = self.say("migrate", "status", name, "--json")
        return json.loads(said) if said.strip() else {}

    def bare_s(self, mib, rounds):
        """Seconds for so many bytes on a bare QUIC stream over such a link."""
        said = subprocess.run(
            [program("bare_stream"), "--address", ADDRESS, "--rtt-ms", str(self.rtt_ms), "--rate-mbit", str(self.rate_mbit),
             "--queue-kib", str(self.queue_kib), "--mib", str(mib), "--rounds", str(rounds)],
            capture_output=True, text=True, check=True, timeout=LEECH_S * rounds)
        return [float(line) for line in said.stdout.split()]

    def _start(self, *words):
        log = open(self.folder / "log", "a")
        words = [servers.blockferry(), *words]
        words = self.polite + words if words[1] == "leech" else words
        return subprocess.Popen(words, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True)


def line(process):
    """The next line of a leecher, however long that takes."""
    said = process.stdout.readline().strip()
    if not said:
        raise RuntimeError(f"the leecher ended with {process.wait(servers.START_S)}; its log says why")
    return said


@contextlib.contextmanager
def writing(device, bytes_per_s):
    """fio writes 4 KiB at random; it ends with an error when the volume has moved."""
    fio = subprocess.Popen(
        ["fio", "--name=writer", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=psync",
         "--norandommap", f"--rate={bytes_per_s}", "--time_based", f"--runtime={LEECH_S}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield fio
    finally:
        servers.end(fio)


class Prober:
    """Reads a block each millisecond and knows when the last read came back: what an application sees."""

    def __init__(self, device):
        self.block = mmap.mmap(-1, BLOCK)
        self.last_s = time.monotonic()
        self.device = os.open(device, os.O_RDONLY | os.O_DIRECT)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                os.preadv(self.device, [self.block], 0)
                self.last_s = time.monotonic()
                time.sleep(0.001)
        os.close(self.device)

    def gap_s(self, device):
        """From the last read there to the first one here."""
        with open(device, "rb", buffering=0) as there:
            there.read(BLOCK)
        now = time.monotonic()
        self.thread.join(servers.START_S)
        return now - self.last_s


def free_bytes(folder):
    """What the disk has left."""
    return shutil.disk_usage(folder).free
