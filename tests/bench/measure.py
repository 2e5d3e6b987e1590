"""One timed command: cold cache before it, everything it wrote durable after it, its CPU time and memory."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sample:
    """What one run of one command cost."""

    wall: float
    """Seconds from start until all that was written is on the medium."""
    cpu: float
    """User and system seconds of the command and the processes it waited for, from wait4."""
    peak: int = 0
    """VmHWM of the command itself, bytes. From /proc while it runs: ru_maxrss begins with what Python had before the exec."""
    size: int = 0
    """Bytes that what it wrote takes on the medium."""
    output: str = ""


def cold():
    """Nothing of any file is left in the page cache."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
    # What the file system discards and journals after the removals of the last command.
    time.sleep(1)


def timed(command: list, log: Path, *, wrote: Path | None = None, stdin: Path | None = None, stdout: Path | None = None,
          env: dict | None = None, cwd: Path | None = None) -> Sample:
    """Runs `command` cold; `wrote` is what it wrote, synced within the measured time."""
    command = [str(part) for part in command]
    with open(log, "ab") as said:
        said.write(f"\n$ {' '.join(command)}\n".encode())
    # Standard output goes to a file of its own, not to a pipe that we would have to empty meanwhile.
    answer = stdout or log.with_suffix(".out")
    with open(log, "ab") as said, open(answer, "wb") as out, open(stdin or os.devnull, "rb") as given:
        cold()
        begin = time.monotonic()
        child = subprocess.Popen(command, stdin=given, stdout=out, stderr=said, env={**os.environ, **(env or {})}, cwd=cwd)
        memory = Memory(child.pid)
        # wait4 and not Popen.wait: it tells what this child used.
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if wrote:
            subprocess.run(["sync", "-f", wrote], check=True)
        wall = time.monotonic() - begin
    if child.returncode:
        raise SystemExit(f"tests/bench: {' '.join(command)}: exit {child.returncode}; {log} has what it said:\n{tail(log)}")
    output = "" if stdout else answer.read_text(errors="replace")
    return Sample(wall, used.ru_utime + used.ru_stime, memory.peak(), allocated(wrote) if wrote else 0, output)


class Memory(threading.Thread):
    """Polls VmHWM of a process until it is gone."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.file, self.bytes = f"/proc/{pid}/status", 0
        self.start()

    def run(self):
        while True:
            try:
                with open(self.file) as status:
                    line = next((line for line in status if line.startswith("VmHWM:")), None)
            except OSError:
                return
            # A zombie has no such line.
            if line is None:
                return
            self.bytes = max(self.bytes, int(line.split()[1]) * 1024)
            time.sleep(0.02)

    def peak(self) -> int:
        self.join()
        return self.bytes


def allocated(path: Path) -> int:
    """Bytes that a file, or all files of a directory, take on the medium."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
