"""What is compared with what, and what must come out."""

from dataclasses import dataclass
from typing import Callable

import gear
import peers

# Every command, with those that must have run before it in the same round, and the disks whose round it belongs to.
COMMANDS: dict[str, tuple[Callable, list[str]]] = {
    "dd": (peers.dd, []),
    "qemu raw": (peers.qemu_raw, []),
    "nbdcopy": (peers.nbdcopy, []),
    "seed": (gear.seed, []),
    "kernels": (gear.kernels, []),
    "qcow2-zstd": (peers.qcow2, []),
    "borg create": (peers.borg, []),
    "restic backup": (peers.restic, []),
    "disk alone": (peers.disk_alone, ["seed"]),
    "seal": (gear.seal, ["seed"]),
    "verify": (gear.verify, ["seal"]),
    "fio": (peers.fio, ["seed"]),
    "verify with identity": (gear.verify_all, ["seal"]),
    "scan": (gear.scan, ["seal"]),
    "b3sum": (peers.b3sum, []),
    "scan again": (gear.scan_again, ["scan"]),
    "import none": (gear.import_none, ["seal"]),
    "qcow2 restore": (peers.qcow2_restore, ["qcow2-zstd"]),
    "import full": (gear.import_full, ["seal"]),
    "borg extract": (peers.borg_restore, ["borg create"]),
    "restic dump": (peers.restic_restore, ["restic backup"]),
    "restore": (gear.restore, ["seal"]),
}
OURS = {"seed", "seal", "verify", "verify with identity", "scan", "scan again", "import none", "import full", "restore"}


@dataclass
class Figure:
    """`ours` ÷ `theirs`, each on its disk."""

    key: str
    title: str
    ours: tuple[str, str]
    """Disk and command."""
    theirs: tuple[str, str]
    must: float | None
    """`None`: nothing is asked of it; it tells how near to the machine's own limit another figure is."""
    aim: float | None
    unit: str = "wall"
    """Which of a sample's values is compared: `wall` or `cpu`."""


FIGURES = [
    Figure("seed-a", "seed ÷ `qemu-img` raw, disk (a)", ("a", "seed"), ("a", "qemu raw"), 1.0, 0.75),
    Figure("seed-d", "seed ÷ `qemu-img` raw, incompressible disk (d)", ("d", "seed"), ("d", "qemu raw"), 1.15, 1.0),
    Figure("borg", "seed ÷ borg, disk (a)", ("a", "seed"), ("a", "borg create"), 0.25, 0.15),
    Figure("restic", "seed ÷ restic, disk (a)", ("a", "seed"), ("a", "restic backup"), 0.10, 0.05),
    Figure("floor", "the disk alone, `fio` moving the bytes of that seed ÷ restic, disk (a)", ("a", "disk alone"), ("a", "restic backup"), None, None),
    Figure("limit", "seed ÷ the disk alone, disk (a)", ("a", "seed"), ("a", "disk alone"), None, None),
    Figure("qcow2", "seed ÷ qcow2-zstd, disk (a)", ("a", "seed"), ("a", "qcow2-zstd"), 0.40, 0.25),
    Figure("import", "import without read-back ÷ restore from qcow2-zstd, disk (a)", ("a", "import none"), ("a", "qcow2 restore"), 1.0, 0.7),
    Figure("readback", "import with full read-back ÷ borg extract, disk (a)", ("a", "import full"), ("a", "borg extract"), 0.35, 0.25),
    Figure("verify-d", "verify without key ÷ `fio` reading the same packs, disk (d)", ("d", "verify"), ("d", "fio"), 1.1, 1.0),
    Figure("verify-a", "same, packs of 0.2 GiB, disk (a)", ("a", "verify"), ("a", "fio"), 1.1, 1.0),
    Figure("scan", "first scan, unchanged disk ÷ `b3sum`, cold, disk (a)", ("a", "scan"), ("a", "b3sum"), 1.0, 0.8),
    Figure("cpu", "CPU seconds of seed ÷ sum of the bare kernels', disk (a)", ("a", "seed"), ("a", "kernels"), 1.25, 1.1, "cpu"),
    Figure("many", "seed of 16 disks at once (e) ÷ one disk of the same total", ("e", "seed"), ("e1", "seed"), 1.1, 1.0),
]
MEMORY_MUST, MEMORY_AIM = 256 << 20, 128 << 20
# Disks without a figure of their own; measured so that no kind of content hides a surprise.
EXTRA = {"b": ["qemu raw", "seed"], "c": ["qemu raw", "seed"], "d": ["import full", "scan", "b3sum", "kernels"]}


def wanted(disk: str, figures: list[Figure], extra: bool) -> list[str]:
    """The commands to run on `disk`, in their order, with what they need."""
    names = {name for figure in figures for on, name in (figure.ours, figure.theirs) if on == disk}
    if extra:
        names |= set(EXTRA.get(disk, []))
        if disk == "a":
            names |= set(COMMANDS)
    before = set()
    while before != names:
        before = set(names)
        names |= {need for name in before for need in COMMANDS[name][1]}
    return [name for name in COMMANDS if name in names]
