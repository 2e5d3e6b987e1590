"""The disks that are copied: built once, kept in the work directory, the same for every peer.

Each is a sparse raw image. It is built under another name and renamed when it is whole, so what has its name is whole.
"""

import itertools
import os
import random
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30
WORDS = 40_000


def sh(*command, **options):
    """Runs a command that must succeed; its standard output."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise SystemExit(f"tests/bench: {' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Disks:
    """Builds disks below `work/disks` on demand. `shrink` divides every size: only to try the bench itself."""

    def __init__(self, work: Path, shrink: int):
        self.dir = work / "disks"
        self.dir.mkdir(parents=True, exist_ok=True)
        self.shrink = shrink

    def get(self, name: str) -> list[Path]:
        """The image files of disk `name`; sixteen of them for `e`."""
        if name == "e":
            return [self._built(f"e{at:02}", lambda file, at=at: self._mixed(file, at)) for at in range(16)]
        build = {"a": self._database, "b": self._root, "c": self._ntfs, "d": self._random, "e1": self._joined}[name]
        return [self._built(name, build)]

    def _built(self, name: str, build) -> Path:
        path = self.dir / (f"{name}.raw" if self.shrink == 1 else f"{name}-{self.shrink}.raw")
        if not path.exists():
            print(f"tests/bench: building disk {name}", flush=True)
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            build(part)
            sh("sync", "-f", part)
            part.rename(path)
        return path

    def _bytes(self, count: int) -> int:
        return count // self.shrink // MIB * MIB

    def _database(self, file: Path):
        """(a) GPT, ext4, a PostgreSQL cluster with a pgbench database under some load, stopped after a checkpoint."""
        with partition(file, self._bytes(6 * GIB)) as device, mounted(device) as root:
            data = root / "pgdata"
            data.mkdir()
            shutil.chown(data, "postgres", "postgres")
            with tempfile.TemporaryDirectory(prefix="mg-pg-", dir="/var/tmp") as socket:
                shutil.chown(socket, "postgres", "postgres")
                run_postgres(data, socket, scale=max(1, 135 // self.shrink), seconds=max(5, 60 // self.shrink))

    def _root(self, file: Path):
        """(b) GPT, ext4, a Debian root by debootstrap, and random files."""
        with partition(file, self._bytes(4 * GIB)) as device, mounted(device) as root:
            if self.shrink == 1:
                sh("debootstrap", "--variant=minbase", "bookworm", root)
            for at in range(self._bytes(300 * MIB) // MIB // 3):
                (root / "srv").mkdir(exist_ok=True)
                with open(root / f"srv/{at:03}.bin", "wb") as out:
                    noise(out, 3 * MIB, f"b{at}")

    def _ntfs(self, file: Path):
        """(c) One NTFS file system with documents that compress and archives that do not."""
        truncate(file, self._bytes(3 * GIB))
        sh("mkntfs", "-F", "-Q", "-q", "-L", "DATA", file)
        with tempfile.TemporaryDirectory(prefix="mg-ntfs-", dir=self.dir) as point:
            sh("ntfs-3g", "-o", "big_writes", file, point)
            try:
                for kind, write, total, each in [("documents", text, 800 * MIB, 4 * MIB), ("archives", noise, 400 * MIB, 8 * MIB)]:
                    folder = Path(point, "Users", kind)
                    folder.mkdir(parents=True)
                    for at in range(max(1, self._bytes(total) // each)):
                        with open(folder / f"{at:04}", "wb") as out:
                            write(out, each, f"c{kind}{at}")
            finally:
                sh("umount", point)

    def _random(self, file: Path):
        """(d) Noise from end to end."""
        with open(file, "wb") as out:
            noise(out, self._bytes(4 * GIB), "d")

    def _mixed(self, file: Path, at: int):
        """(e) One of sixteen: text, noise, holes, in another order on every disk."""
        truncate(file, self._bytes(512 * MIB))
        kinds = [text, noise, None, text, None, noise, text, None]
        random.Random(f"e{at}").shuffle(kinds)
        part = self._bytes(512 * MIB) // len(kinds)
        with open(file, "r+b") as out:
            for slot, kind in enumerate(kinds):
                if kind:
                    out.seek(slot * part)
                    kind(out, part, f"e{at}.{slot}")

    def _joined(self, file: Path):
        """(e1) The sixteen of (e), one after the other, holes kept."""
        parts = self.get("e")
        each = parts[0].stat().st_size
        truncate(file, each * len(parts))
        for at, part in enumerate(parts):
            sh("dd", f"if={part}", f"of={file}", "bs=1M", f"seek={at * each // MIB}", "conv=notrunc,sparse", "status=none")


def truncate(file: Path, size: int):
    with open(file, "wb") as out:
        out.truncate(size)


def noise(out, size: int, seed: str):
    """Bytes that do not compress, determined by `seed`."""
    source = random.Random(seed)
    while size > 0:
        size -= out.write(source.randbytes(min(size, MIB)))


def text(out, size: int, seed: str):
    """Lines of words that compress about threefold, determined by `seed`."""
    source = random.Random(seed)
    words = ["".join(source.choices("etaoinshrdlu", k=source.randint(2, 9))) for _ in range(WORDS)]
    # Common words are common: word 0 is drawn far more often than the last.
    sums = list(itertools.accumulate(1 / (rank + 2) for rank in range(WORDS)))
    while size > 0:
        line = " ".join(source.choices(words, cum_weights=sums, k=50_000)).encode()
        size -= out.write(line[:size])


@contextmanager
def attached(file: Path, *options):
    """A loop device over `file`."""
    device = sh("losetup", "--find", "--show", *options, file).strip()
    try:
        yield device
    finally:
        sh("losetup", "--detach", device)


@contextmanager
def partition(file: Path, size: int):
    """A GPT disk of `size` bytes with one ext4 partition; its loop device."""
    truncate(file, size)
    length = size // MIB - 2
    sh("sfdisk", "--quiet", file, input=f"label: gpt\nstart=1MiB, size={length}MiB, type=L\n")
    # By offset instead of a partition scan: no device node is waited for.
    with attached(file, "--offset", MIB, "--sizelimit", length * MIB) as device:
        sh("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
        yield device


@contextmanager
def mounted(device: str):
    with tempfile.TemporaryDirectory(prefix="mg-bench-", dir="/var/tmp") as point:
        sh("mount", device, point)
        os.chmod(point, 0o755)
        try:
            yield Path(point)
        finally:
            sh("umount", point)


def run_postgres(data: Path, socket: str, scale: int, seconds: int):
    """Makes a cluster in `data`, fills it with pgbench, works on it, stops it after a checkpoint."""
    bin_dir = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4])).parent

    def postgres(program, *arguments):
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", bin_dir / program, *arguments]
        return sh(*command, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "PGHOST": socket, "PGDATABASE": "postgres"}, cwd="/")

    postgres("initdb", "-D", data, "--no-sync", "--auth=trust", "--encoding=UTF8")
    # No fsync while it is built: the image is synced when it is whole.
    options = f"-c listen_addresses='' -c unix_socket_directories={socket} -c fsync=off -c shared_buffers=256MB"
    postgres("pg_ctl", "-D", data, "-l", f"{socket}/log", "-w", "-o", options, "start")
    try:
        postgres("pgbench", "-i", "-q", "-s", str(scale))
        postgres("pgbench", "-n", "-c", "4", "-j", "2", "-T", str(seconds), "--random-seed=3")
        postgres("psql", "-qc", "CHECKPOINT")
    finally:
        postgres("pg_ctl", "-D", data, "-w", "-m", "fast", "stop")
