"""Migrations of a volume that an application writes to: downtime, total time, and what the application notices before."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from kit import fio, machine, migrations
from kit.lines import Line, Panel
from kit.report import Report

QUICK = bool(os.environ.get("BENCH_QUICK"))
ONLY = os.environ.get("BENCH_ONLY", "downtime,total,application").split(",")  # for a part of the page
RTTS_MS = [0, 25] if QUICK else [0, 10, 25, 50]
RATE_MBIT, QUEUE_KIB = 1000, 1024
WRITTEN_BYTES_PER_S = 10_000_000
# MiB, and which share of it is data.
SIZES = [(64, 1.0), (1024, 1.0), (8192, 1 / 8)]
SIZES = [(mib, share) for mib, share in SIZES if mib <= int(os.environ.get("BENCH_MIB_MAX", "1024" if QUICK else "8192"))]
TOTAL_MIB = 1024
ROUNDS = 1 if QUICK else int(os.environ.get("BENCH_ROUNDS", "3"))
LOAD_S = 1.0 if QUICK else 3.0
FIXED_MS = 20
TOTAL = 0.85
SLOWER = 1.10
LOADS = ["read-1", "write-1"]
FREE_BYTES = 24 << 30
TITLE = "Migrations"
INTRO = f"""\
Both hosts are this machine with its two CPUs, in a network of its own: `seed`, `leech`, fio at the seeder and the link between them
(`examples/link_relay`, {RATE_MBIT} Mbit/s each way, a queue of {QUEUE_KIB} KiB, packets of at most 1500 bytes) share them. Devices are FUSE files with loop devices on
top, stores are files on one disk. A volume is noise; one of 8 GiB has holes between, an eighth of it is data. Each round has a store that is new.
Figures are medians of {ROUNDS} {"round" if ROUNDS == 1 else "rounds"} (`BENCH_ROUNDS`)."""


def main():
    """Measures everything in a network of its own and writes the page."""
    if os.geteuid() != 0:
        sys.exit("bench: migration needs root, for the loop devices")
    if not os.environ.get("BLOCKFERRY"):
        sys.exit("bench: migration measures blockferry alone; run it without --peers-only")
    if not os.environ.get("BENCH_NETWORK"):
        network = f"ip link set lo up && ip address add {migrations.ADDRESS}/24 dev lo && exec python3 {__file__}"
        done = subprocess.run(["unshare", "--net", "sh", "-c", network], env=os.environ | {"BENCH_NETWORK": "1"})
        sys.exit(done.returncode)
    facts = machine.facts() | {"fio": fio.version()}
    report = Report("migration", TITLE, INTRO)
    with tempfile.TemporaryDirectory(prefix="blockferry-bench.") as folder:
        moves = measure_moves(folder) if "downtime" in ONLY else {}
        totals = measure_totals(folder) if "total" in ONLY else {}
        loads = measure_loads(folder) if "application" in ONLY else {}
    where = f"{facts['kernel']}; {facts['processor']}; {RATE_MBIT} Mbit/s"
    report.lines("migration", where, "round trip time, ms", RTTS_MS, panels(moves, totals))
    if moves:
        downtime(report, moves)
    if totals:
        total(report, totals)
    if loads:
        application(report, loads)
    facts["load after"] = f"{os.getloadavg()[0]:.2f}"
    report.facts(facts)
    report.write()


def measure_moves(folder):
    """Each size at each distance: what each round was like."""
    moves = {}
    for mib, share in SIZES:
        if migrations.free_bytes(folder) < FREE_BYTES + (mib << 20) * 2 * share:
            sys.exit(f"bench: the disk below {folder} has no room for two volumes of {mib} MiB")
        volume = Path(folder) / "volume.img"
        migrations.make_volume(volume, mib, share)
        for rtt_ms in RTTS_MS:
            print(f"  {mib} MiB, {rtt_ms} ms", file=sys.stderr, flush=True)
            moves[mib, rtt_ms] = [move(folder, volume, rtt_ms) for _ in range(ROUNDS)]
        volume.unlink()
    return moves


def world(folder, rtt_ms, politely=False):
    """A folder of its own for what the processes keep."""
    return migrations.World(tempfile.mkdtemp(dir=folder), rtt_ms, RATE_MBIT, QUEUE_KIB, politely)


def move(folder, volume, rtt_ms):
    """One migration under a writer."""
    hosts = world(folder, rtt_ms)
    with hosts.seeder(volume) as device, migrations.writing(device, WRITTEN_BYTES_PER_S):
        prober = migrations.Prober(device)
        begun = time.monotonic()
        with hosts.leecher(hosts.folder / "store.img") as leecher:
            arrived = migrations.line(leecher)
            gap_s = prober.gap_s(arrived)
            took_s = time.monotonic() - begun
            said = migrations.line(leecher)
            status = hosts.status()
    return {
        "seen_ms": gap_s * 1e3, "said_ms": float(said.split()[1]), "took_s": took_s,
        "rounds": status["rounds"], "final_bytes": status["round_bytes"],
    }


def bound_ms(rtt_ms, moved):
    """What is wanted."""
    return 2 * rtt_ms + FIXED_MS + moved["final_bytes"] * 8 / (RATE_MBIT * 1e3)


def measure_totals(folder):
    """The whole time of a volume that nobody writes to, and of a bare stream of its bytes, in turns."""
    volume = Path(folder) / "volume.img"
    migrations.make_volume(volume, TOTAL_MIB)
    totals = {rtt_ms: {"ours_s": [], "bare_s": []} for rtt_ms in RTTS_MS}
    for rtt_ms in RTTS_MS:
        print(f"  total, {rtt_ms} ms", file=sys.stderr, flush=True)
        for _ in range(ROUNDS):
            hosts = world(folder, rtt_ms)
            with hosts.seeder(volume):
                begun = time.monotonic()
                with hosts.leecher(hosts.folder / "store.img") as leecher:
                    migrations.line(leecher)
                    totals[rtt_ms]["ours_s"].append(time.monotonic() - begun)
            totals[rtt_ms]["bare_s"] += hosts.bare_s(TOTAL_MIB, 1)
    volume.unlink()
    return totals


def measure_loads(folder):
    """fio at the seeder, alone and while it is leeched, in turns."""
    volume = Path(folder) / "volume.img"
    migrations.make_volume(volume, TOTAL_MIB)
    loads = {key: {"alone": [], "leeched": [], "pulled_bytes_per_s": []} for key in LOADS}
    for number in range(ROUNDS):
        for key in LOADS:
            print(f"  {fio.POINTS[key].title}, round {number + 1}", file=sys.stderr, flush=True)
            hosts = world(folder, 0, politely=True)
            with hosts.seeder(volume) as device:
                loads[key]["alone"].append(load(key, device))
                with hosts.leecher(hosts.folder / "store.img", "--finalize", "manual"):
                    wait_for_bytes(hosts)
                    begun, before = time.monotonic(), hosts.status()["pulled_bytes"]
                    loads[key]["leeched"].append(load(key, device))
                    status = hosts.status()
                    if status["rounds"]:
                        raise RuntimeError("the first round ended while fio ran; the volume is too small for this link")
                    loads[key]["pulled_bytes_per_s"].append((status["pulled_bytes"] - before) / (time.monotonic() - begun))
    volume.unlink()
    return loads


def wait_for_bytes(hosts):
    """The pull is under way."""
    deadline = time.monotonic() + migrations.LEECH_S
    while not hosts.status().get("pulled_bytes"):
        if time.monotonic() > deadline:
            raise RuntimeError("the leecher pulls nothing")
        time.sleep(0.02)


def load(key, device):
    """Requests a second."""
    return fio.run(fio.POINTS[key], {key: device}, LOAD_S)[key].iops


def verdict(is_met):
    """In a word."""
    return "met" if is_met else "**missed**"


def mid(rounds, figure):
    """The median of the rounds."""
    return median(one[figure] for one in rounds)


def downtime(report, moves):
    """For how long nobody took requests."""
    report.heading("Downtime")
    report.text(
        f"fio writes {WRITTEN_BYTES_PER_S / 1e6:g} MB/s at random, 4 KiB each, at the seeder. *Seen*: from the last read that came back there to the first one that did here, "
        f"each by a program that reads once a millisecond; *said*: by `leech`. Wanted: what is seen within 2 round trips, {FIXED_MS} ms and the time of the last bytes at {RATE_MBIT} Mbit/s, "
        f"whatever the size."
    )
    report.table(["volume MiB", "RTT ms", "seen ms", "of rounds", "said ms", "rounds", "last MB", "total s", "wanted ms", ""], [
        [mib, rtt_ms, f"{mid(rounds, 'seen_ms'):.1f}", f"{min(one['seen_ms'] for one in rounds):.1f}–{max(one['seen_ms'] for one in rounds):.1f}",
         f"{mid(rounds, 'said_ms'):.1f}", f"{mid(rounds, 'rounds'):g}", f"{mid(rounds, 'final_bytes') / 1e6:.2f}", f"{mid(rounds, 'took_s'):.1f}",
         f"≤ {wanted(rtt_ms, rounds):.1f}", verdict(mid(rounds, "seen_ms") <= wanted(rtt_ms, rounds))]
        for (mib, rtt_ms), rounds in moves.items()
    ])


def wanted(rtt_ms, rounds):
    """The median of the rounds' bounds."""
    return median(bound_ms(rtt_ms, one) for one in rounds)


def total(report, totals):
    """The whole of it beside the bare stream."""
    report.heading("Total time")
    report.text(
        f"Of a volume of {TOTAL_MIB} MiB that nobody writes to, from the start of `leech` to the device's path, and of a bare QUIC stream of as many bytes over the same link. "
        f"Wanted: the stream's time is at least {TOTAL} of ours."
    )
    report.table(["RTT ms", "migration s", "bare stream s", "ratio", "wanted", ""], [
        [rtt_ms, f"{median(took['ours_s']):.1f}", f"{median(took['bare_s']):.1f}", f"{ratio(took):.2f}", f"≥ {TOTAL}", verdict(ratio(took) >= TOTAL)]
        for rtt_ms, took in totals.items()
    ])


def ratio(took):
    """The median of the ratios within a round."""
    return median(bare / ours for ours, bare in zip(took["ours_s"], took["bare_s"]))


def application(report, loads):
    """What the pull takes from an application."""
    report.heading("An application at the seeder")
    report.text(
        f"fio, direct, one request at a time, on a volume of {TOTAL_MIB} MiB: alone, and during the first round of a migration, when the pull is at full speed. "
        f"Wanted: at most {100 * (SLOWER - 1):.0f} % slower. Leecher and link, which would be elsewhere, get the time that nobody else wants (SCHED_IDLE); seeder and fio share the two CPUs."
    )
    report.table(["load", "alone IOPS", "leeched IOPS", "a request takes", "pull MB/s", "wanted", ""], [
        [fio.POINTS[key].title, f"{median(done['alone']):.0f}", f"{median(done['leeched']):.0f}", f"{slower(done):.2f} ×",
         f"{median(done['pulled_bytes_per_s']) / 1e6:.0f}", f"≤ {SLOWER:.2f}", verdict(slower(done) <= SLOWER)]
        for key, done in loads.items()
    ])


def slower(done):
    """How much longer a request takes: the median of the rounds."""
    return median(alone / leeched for alone, leeched in zip(done["alone"], done["leeched"]))


def panels(moves, totals):
    """Downtime by size, and total times."""
    panels = []
    if moves:
        seen = [
            Line(f"{mib} MiB", "ours", [mid(moves[mib, rtt_ms], "seen_ms") for rtt_ms in RTTS_MS], shade)
            for shade, (mib, _) in enumerate(SIZES)
        ]
        largest = SIZES[-1][0]
        wish = Line("wanted", "local", [wanted(rtt_ms, moves[largest, rtt_ms]) for rtt_ms in RTTS_MS], dashed=True)
        panels.append(Panel("Downtime under 10 MB/s of writes", "ms", [*seen, wish]))
    if totals:
        panels.append(Panel(f"Total time of {TOTAL_MIB} MiB", "s", [
            Line("migration", "ours", [median(totals[rtt_ms]["ours_s"]) for rtt_ms in RTTS_MS]),
            Line("bare stream", "peer", [median(totals[rtt_ms]["bare_s"]) for rtt_ms in RTTS_MS]),
        ]))
    return panels or [Panel("nothing", "", [Line("", "ours", [0 for _ in RTTS_MS])])]


if __name__ == "__main__":
    main()
