"""Where a round works: the disk under test, the scratch directory, the tools."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Round:
    """One round on one disk. All that is written lies in `scratch`, on the same file system for everybody."""

    disk: str
    sources: list[Path]
    """What is read: one path, or sixteen."""
    scratch: Path
    logs: Path
    binary: Path
    kernels: Path
    compare: bool
    """Whether copies are compared with their source, unmeasured, before they are removed."""

    @property
    def source(self) -> Path:
        return self.sources[0]

    @property
    def size(self) -> int:
        """Bytes of all that is read."""
        return sum(length(path) for path in self.sources)

    def log(self, name: str) -> Path:
        return self.logs / f"{self.disk}-{name}.log"

    def fresh(self, name: str) -> Path:
        """A path in scratch where nothing is."""
        remove(self.scratch / name)
        return self.scratch / name

    def done_with(self, copy: Path):
        """Removes a copy of the source, which must be one."""
        if self.compare and subprocess.run(["cmp", self.source, copy]).returncode:
            raise SystemExit(f"tests/bench: {copy} is not a copy of {self.source}")
        remove(copy)

    def clear(self):
        for path in self.scratch.iterdir():
            remove(path)


def length(path: Path) -> int:
    """Bytes of a file or block device."""
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END)


def remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
