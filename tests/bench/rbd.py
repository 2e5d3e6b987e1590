"""Import into a pool of Ceph against nbdcopy of the same bytes into the same pool, in turn; `tests/bench/rbd` starts it.

The disk is noise in its first half and holes in the second. nbdcopy is given its best: the plain image, a server that runs already
with the options of ours, a destination that is known to be zeros, and of several numbers of connections and request sizes the fastest.
Import is the whole command from an encrypted shipment at a host that never saw it, recovery point included; without and with read-back.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import gear
from bench import ROOT, cargo_target
from context import Round
from measure import Sample, timed

CONF = "/var/tmp/mg-cloud/ceph/ceph.conf"
SETTINGS = [(connections, size) for connections in (1, 2, 4, 8) for size in (256 << 10, 1 << 20)]
MUST = 1.1


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/rbd", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (5)")
    parser.add_argument("--gib", type=int, default=4, metavar="N", help="noise, GiB (4)")
    parser.add_argument("--binary", type=Path, metavar="FILE", help="measure this motiongear instead of building this tree's")
    given = parser.parse_args()
    release = cargo_target() / "release"
    if not given.binary:
        subprocess.run(["cargo", "build", "--release", "--bin", "motiongear"], cwd=ROOT, check=True)
    subprocess.run([ROOT / "tests/cloud/stack", "up"], check=True)
    work = release.parent / "bench-rbd"
    shutil.rmtree(work, ignore_errors=True)
    (work / "logs").mkdir(parents=True)
    source = work / "noise.raw"
    noise(source, given.gib)
    at = Round("noise", [source], work, work / "logs", given.binary or release / "motiongear", release, compare=False)
    try:
        gear.seed(at)
        gear.seal(at)
        best = min(SETTINGS, key=lambda setting: min(nbdcopy(at, *setting).wall for _ in range(2)))
        print(f"nbdcopy is fastest with {best[0]} connections and requests of {best[1] >> 10} KiB", flush=True)
        samples = {"nbdcopy": [], "import": [], "import full": []}
        for number in range(given.rounds):
            samples["nbdcopy"].append(nbdcopy(at, *best))
            samples["import"].append(imported(at, "none"))
            samples["import full"].append(imported(at, "full"))
            said = [f"{name} {of[-1].wall:.2f} s (CPU of it alone {of[-1].cpu:.2f} s)" for name, of in samples.items()]
            print(f"round {number + 1}: {', '.join(said)}", flush=True)
        for name in ("import", "import full"):
            ratios = sorted(ours.wall / peer.wall for ours, peer in zip(samples[name], samples["nbdcopy"]))
            must = f", must {MUST}" if name == "import" else ""
            print(f"{name} / nbdcopy: {statistics.median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f}){must}")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def noise(path: Path, gib: int):
    with open(path, "wb") as file:
        for _ in range(gib << 6):
            file.write(os.urandom(16 << 20))
        file.truncate(gib << 31)


def nbdcopy(at: Round, connections: int, size: int) -> Sample:
    image, socket = "bench-peer", at.scratch / "peer.sock"
    rbd("create", "--size", f"{at.size >> 20}M", f"volumes/{image}")
    disk = {"driver": "raw", "file": {"driver": "rbd", "pool": "volumes", "image": image, "conf": CONF}}
    server = subprocess.Popen(["qemu-nbd", "--persistent", "--cache=none", "--discard=unmap", "--shared=16", "--socket", socket,
                               f"json:{json.dumps(disk)}"])
    try:
        while not socket.exists():
            time.sleep(0.05)
        return timed(["nbdcopy", "--flush", "--destination-is-zero", f"--connections={connections}", f"--request-size={size}",
                      at.source, f"nbd+unix:///?socket={socket}"], at.log("nbdcopy"))
    finally:
        server.terminate()
        server.wait()
        forget(image)


def imported(at: Round, readback: str) -> Sample:
    at.fresh("centre")
    sample = gear.run(at, f"import-{readback}", "centre", "--json", "import", at.scratch / "array", "--uncompared", "--to", f"rbd:volumes?conf={CONF}",
                      "--readback", readback, *gear.trusted(at))
    for disk in json.loads(sample.output)["disks"]:
        forget(disk["volume"].removeprefix("rbd:volumes/"))
    return sample


def forget(image: str):
    rbd("snap", "purge", "--no-progress", f"volumes/{image}")
    rbd("rm", "--no-progress", f"volumes/{image}")
    # What was removed is freed in the background.
    time.sleep(3)


def rbd(*arguments: str):
    subprocess.run(["rbd", "--conf", CONF, *arguments], check=True)


if __name__ == "__main__":
    main()
