"""The table, in Markdown."""

import os
import platform
import re
import statistics
import subprocess
from collections import defaultdict
from datetime import datetime, timezone

from figures import FIGURES, MEMORY_AIM, MEMORY_MUST, OURS, Figure
from measure import Sample

Results = dict[tuple[str, str], list[Sample]]
"""By disk and command, a sample a round."""

DISKS = {
    "a": "6 GiB GPT, ext4, PostgreSQL of 2 GiB",
    "b": "4 GiB GPT, ext4, Debian root, 300 MiB random",
    "c": "3 GiB NTFS",
    "d": "4 GiB random",
    "e": "sixteen 512 MiB at once",
    "e1": "one 8 GiB of the same content",
}


def render(results: Results, rounds: int, kind: str) -> str:
    lines = [*header(rounds, kind), "", "| figure | must | aim | measured (min..max) | seconds | |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [row for figure in FIGURES if (row := ratio_row(figure, results))]
    lines += [memory_row(results), "", *commands(results)]
    return "\n".join(lines) + "\n"


def header(rounds: int, kind: str) -> list[str]:
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    memory = int(re.search(r"MemTotal:\s+(\d+)", open("/proc/meminfo").read())[1]) >> 20
    return [
        f"{os.cpu_count()} cores of {model[1].strip() if model else platform.machine()}, {memory} GiB, Linux {platform.release()}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC; {rounds} rounds, cold cache, in turn, everything durable; {kind}. "
        f"Peers: {versions()}.",
    ]


def versions() -> str:
    packages = ["qemu-utils", "libnbd-bin", "coreutils", "borgbackup", "restic", "b3sum", "fio"]
    query = subprocess.run(["dpkg-query", "-Wf", "${Package} ${Version}, ", *packages], capture_output=True, text=True)
    return query.stdout.removesuffix(", ")


def ratio_row(figure: Figure, results: Results) -> str | None:
    ours, theirs = results.get(figure.ours), results.get(figure.theirs)
    if not ours or not theirs:
        return None
    mine, other = ([getattr(sample, figure.unit) for sample in samples] for samples in (ours, theirs))
    # Round by round, so that a slow minute of the machine is in both.
    ratios = [a / b for a, b in zip(mine, other)]
    middle = statistics.median(ratios)
    seconds = f"{statistics.median(mine):.2f} ÷ {statistics.median(other):.2f}"
    if figure.must is None:
        return f"| {figure.title} | | | {spread(ratios)} | {seconds} | |"
    verdict = "aim" if middle <= figure.aim else "must" if middle <= figure.must else "**missed**"
    return f"| {figure.title} | ≤ {figure.must:.2f} | ≤ {figure.aim:.2f} | {spread(ratios)} | {seconds} | {verdict} |"


def memory_row(results: Results) -> str:
    peak, disk, name = max(((max(s.peak for s in samples), *key) for key, samples in results.items() if key[1] in OURS), default=(0, "", ""))
    verdict = "aim" if peak <= MEMORY_AIM else "must" if peak <= MEMORY_MUST else "**missed**"
    return (f"| resident memory, any disk, any number, any verb | ≤ {MEMORY_MUST >> 20} MiB | ≤ {MEMORY_AIM >> 20} MiB "
            f"| {peak / (1 << 20):.0f} MiB ({name}, disk {disk}) | | {verdict} |")


def commands(results: Results) -> list[str]:
    """Every command that ran: the seconds behind the ratios."""
    lines = ["| disk | command | seconds (min..max) | CPU s | memory MiB | wrote MiB |", "| --- | --- | --- | --- | --- | --- |"]
    by_disk = defaultdict(list)
    for (disk, name), samples in results.items():
        by_disk[disk].append((name, samples))
    for disk, entries in by_disk.items():
        for name, samples in entries:
            cpu = statistics.median(sample.cpu for sample in samples)
            peak = max(sample.peak for sample in samples) / (1 << 20)
            size = statistics.median(sample.size for sample in samples) / (1 << 20)
            wrote = f"{size:.0f}" if size else ""
            label = f"**{name}**" if name in OURS else name
            lines.append(f"| {disk} | {label} | {spread([s.wall for s in samples])} | {cpu:.2f} | {peak:.0f} | {wrote} |")
    return [*lines, "", *(f"({disk}) {DISKS[disk]}  " for disk in by_disk)]


def spread(values: list[float]) -> str:
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}..{max(values):.2f})"
