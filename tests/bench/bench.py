"""Peers and MotionGear in turn on the same disks. `tests/bench/run` installs what this needs and starts it."""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import figures
import table
from context import Round
from disks import Disks, attached

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="Measures MotionGear against what would be used instead.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds (3)")
    parser.add_argument("--disk", default="a,b,c,d,e", metavar="LIST", help="only these disks, as in a,d")
    parser.add_argument("--only", metavar="LIST", help="only these figures: " + ", ".join(figure.key for figure in figures.FIGURES))
    parser.add_argument("--source", choices=["file", "loop"], default="file", help="sparse image files, or loop devices (O_DIRECT) over them")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work directory: disks, logs, results (below target/)")
    parser.add_argument("--binary", type=Path, metavar="FILE", help="measure this motiongear instead of building this tree's")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="disks N times smaller: only to try the bench itself")
    return parser.parse_args()


def main():
    given = arguments()
    release = cargo_target() / "release"
    work = (given.keep or release.parent / "bench").resolve()
    work.mkdir(parents=True, exist_ok=True)
    lock = open(work / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"tests/bench: another run works in {work}")
    subprocess.run(["cargo", "build", "--release", "--bin", "motiongear", "--example", "kernels"], cwd=ROOT, check=True)
    scratch, logs = work / "scratch", work / "logs"
    for path in (scratch, logs):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    chosen = [figure for figure in figures.FIGURES if not given.only or figure.key in given.only.split(",")]
    asked = given.disk.split(",")
    plan = {disk: figures.wanted(disk, chosen, extra=not given.only) for disk in table.DISKS if disk[0] in asked}
    plan = {disk: names for disk, names in plan.items() if names}
    disks = Disks(work, given.shrink)
    sources = {disk: disks.get(disk) for disk in plan}
    results = {}
    with ExitStack() as devices:
        if given.source == "loop":
            for disk, files in sources.items():
                options = ["--direct-io=on", "--read-only"]
                sources[disk] = [Path(devices.enter_context(attached(file, *options))) for file in files]
        for number in range(given.rounds):
            for disk, names in plan.items():
                binary = given.binary or release / "motiongear"
                at = Round(disk, sources[disk], scratch, logs, binary, release / "examples/kernels", compare=number == 0)
                for name in names:
                    sample = figures.COMMANDS[name][0](at)
                    results.setdefault((disk, name), []).append(sample)
                    save(work, results, number + 1, given)
                    print(f"round {number + 1}  {disk:2}  {name:22} {sample.wall:8.2f} s  CPU {sample.cpu:7.2f} s", flush=True)
                at.clear()
    print(f"\n{(work / 'table.md').read_text()}\ntests/bench: {work}/table.md")


def save(work: Path, results: table.Results, rounds: int, given):
    kind = {"file": "sparse image files", "loop": "loop devices with direct I/O over sparse image files"}[given.source]
    if given.shrink > 1:
        kind += f"; DISKS {given.shrink} TIMES SMALLER, NO FIGURES"
    (work / "table.md").write_text(table.render(results, rounds, kind))
    samples = [{"disk": disk, "command": name, "rounds": [{**asdict(s), "output": ""} for s in samples]}
               for (disk, name), samples in results.items()]
    (work / "samples.json").write_text(json.dumps(samples, indent=1) + "\n")


def cargo_target() -> Path:
    metadata = subprocess.run(["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=ROOT, check=True, capture_output=True)
    return Path(json.loads(metadata.stdout)["target_directory"])


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    main()
