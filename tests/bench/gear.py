"""MotionGear, as its users run it: the defaults, an encrypted shipment with two recipients, a host that never saw the disk.

`seed` makes a fresh array and a fresh state directory, so it also computes the leaves of zero blocks, which a host keeps.
"""

import json
import os

from context import Round, remove
from disks import sh
from measure import Sample, timed


def seed(at: Round) -> Sample:
    array, branch = at.fresh("array"), at.fresh("branch")
    keys(at)
    array.mkdir()
    recipients = [part for name in ("operator", "escrow") for part in ("--recipient", recipient(at, name))]
    # The array is a directory here, on the file system where the peers' copies go too.
    sh(at.binary, "--state", branch, "init", array, "--site", "bench", "--asset", "B-1", "--allow-system-disk", *recipients)
    disks = [part for index, source in enumerate(at.sources) for part in ("--disk", f"sd{index}={source}")]
    command = [at.binary, "--state", branch, "seed", array, "--machine", "db01", "--point-in-time", *disks]
    return timed(command, at.log("seed"), wrote=array)


def seal(at: Round) -> Sample:
    return run(at, "seal", "branch", "seal", at.scratch / "array", "--key", at.scratch / "keys/sign", wrote=at.scratch / "array")


def scan(at: Round) -> Sample:
    """The first scan after the seal."""
    return scanned(at, "scan")


def scan_again(at: Round) -> Sample:
    return scanned(at, "scan_again")


def scanned(at: Round, name: str) -> Sample:
    sample = run(at, name, "branch", "--json", "scan")
    for disk in json.loads(sample.output)["disks"]:
        if disk["blocks"]["unchanged"] != sum(disk["blocks"].values()):
            raise SystemExit(f"tests/bench: scan found changes where there are none: {disk}")
    return sample


def verify(at: Round) -> Sample:
    """The medium without keys: what anybody can check."""
    return run(at, "verify", "centre", "verify", at.scratch / "array")


def verify_all(at: Round) -> Sample:
    """With trust and identity: every block decrypted and compared with its leaf."""
    at.fresh("centre")
    return run(at, "verify_all", "centre", "verify", at.scratch / "array", *trusted(at))


def import_none(at: Round) -> Sample:
    return imported(at, "import_none", "none")


def import_full(at: Round) -> Sample:
    return imported(at, "import_full", "full")


def imported(at: Round, name: str, readback: str) -> Sample:
    """Into a fresh data centre: no ledger, no volumes."""
    at.fresh("centre")
    volumes = at.fresh("volumes")
    sample = run(at, name, "centre", "import", at.scratch / "array", "--uncompared", "--to", f"dir:{volumes}",
                 "--readback", readback, *trusted(at), wrote=volumes)
    if len(at.sources) == 1:
        at.done_with(volumes / "bench/db01/sd0.raw")
    remove(volumes)
    return sample


def restore(at: Round) -> Sample:
    at.fresh("centre")
    copy = at.fresh("restored.raw")
    sample = run(at, "restore", "centre", "restore", at.scratch / "array", "db01/sd0", copy, "--uncompared", *trusted(at),
                 wrote=copy)
    at.done_with(copy)
    return sample


def kernels(at: Round) -> Sample:
    """The bare kernels on the same blocks, one thread: its `cpu` is their sum, nothing else."""
    sample = timed([at.kernels, *at.sources], at.log("kernels"))
    sample.cpu = sum(json.loads(sample.output)["seconds"].values())
    return sample


def run(at: Round, name: str, state: str, *arguments, **options) -> Sample:
    return timed([at.binary, "--state", at.scratch / state, *arguments], at.log(name), **options)


def keys(at: Round):
    """Keys as the manual has them made: one that signs, two that open."""
    folder = at.scratch / "keys"
    if folder.exists():
        return
    folder.mkdir()
    sh(at.binary, "keygen", "sign", "--out", folder / "sign", "--name", "zhang@bench")
    for name in ("operator", "escrow"):
        (folder / f"{name}.pub").write_text(sh(at.binary, "keygen", "age", "--out", folder / name, env={**os.environ, "LC_ALL": "C.UTF-8"}))
    (folder / "trust").write_text(f'zhang@bench namespaces="motiongear-*" {(folder / "sign.pub").read_text()}')


def recipient(at: Round, name: str) -> str:
    words = (at.scratch / f"keys/{name}.pub").read_text().split()
    return next(word for word in words if word.startswith("age1"))


def trusted(at: Round) -> list:
    return ["--trust", at.scratch / "keys/trust", "--identity", at.scratch / "keys/operator"]
