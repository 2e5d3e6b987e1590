"""What a field engineer would use instead, from Debian's packages, each with its fastest options that keep the copy whole.

A function runs one command and returns its sample. What restores finds what the copying one of the same round left.
"""

import json
import os
import subprocess

from context import Round, remove
from disks import MIB, sh
from measure import Sample, timed

BORG = {"BORG_PASSPHRASE": "bench"}
RESTIC = {"RESTIC_PASSWORD": "bench"}


def qemu_raw(at: Round) -> Sample:
    """Raw to raw, past the cache, eight requests at once, out of order."""
    copy = at.fresh("qemu.raw")
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", "none", "-T", "none", "-m", "8", "-W", at.source, copy]
    sample = timed(command, at.log("qemu_raw"), wrote=copy)
    at.done_with(copy)
    return sample


def nbdcopy(at: Round) -> Sample:
    copy = at.fresh("nbdcopy.raw")
    # It makes no file, only fills one.
    copy.touch()
    sample = timed(["nbdcopy", "--flush", at.source, copy], at.log("nbdcopy"), wrote=copy)
    at.done_with(copy)
    return sample


def dd(at: Round) -> Sample:
    copy = at.fresh("dd.raw")
    command = ["dd", f"if={at.source}", f"of={copy}", "bs=4M", "iflag=direct", "oflag=direct", "conv=fsync"]
    sample = timed(command, at.log("dd"), wrote=copy)
    at.done_with(copy)
    return sample


def qcow2(at: Round) -> Sample:
    copy = at.fresh("disk.qcow2")
    command = ["qemu-img", "convert", "-f", "raw", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "-m", "8", "-W", "-T", "none"]
    return timed([*command, at.source, copy], at.log("qcow2"), wrote=copy)


def qcow2_restore(at: Round) -> Sample:
    copy = at.fresh("restored.raw")
    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-t", "none", "-m", "8", "-W"]
    sample = timed([*command, at.scratch / "disk.qcow2", copy], at.log("qcow2_restore"), wrote=copy)
    at.done_with(copy)
    return sample


def borg(at: Round) -> Sample:
    repository = at.fresh("borg")
    env = {**BORG, "BORG_BASE_DIR": str(at.fresh("borg-home"))}
    sh("borg", "init", "--encryption=repokey-blake2", repository, env={**os.environ, **env})
    command = ["borg", "create", "--compression=zstd,1", "--read-special", "--files-cache=disabled", f"{repository}::disk", at.source]
    return timed(command, at.log("borg"), wrote=repository, env=env)


def borg_restore(at: Round) -> Sample:
    folder = at.fresh("restored")
    folder.mkdir()
    env = {**BORG, "BORG_BASE_DIR": str(at.scratch / "borg-home")}
    sample = timed(["borg", "extract", "--sparse", f"{at.scratch}/borg::disk"], at.log("borg_restore"), wrote=folder, env=env, cwd=folder)
    # It leaves the path as it was, without the root.
    at.done_with(folder / at.source.relative_to("/"))
    remove(folder)
    return sample


def restic(at: Round) -> Sample:
    repository = at.fresh("restic")
    command = ["restic", "--repo", repository, "--cache-dir", at.fresh("restic-cache")]
    sh(*command, "init", env={**os.environ, **RESTIC})
    command = [*command, "backup", "--stdin", "--stdin-filename", "disk.raw"]
    return timed(command, at.log("restic"), wrote=repository, stdin=at.source, env=RESTIC)


def restic_restore(at: Round) -> Sample:
    copy = at.fresh("restored.raw")
    command = ["restic", "--repo", at.scratch / "restic", "--cache-dir", at.scratch / "restic-cache", "dump", "latest", "disk.raw"]
    sample = timed(command, at.log("restic_restore"), wrote=copy, stdout=copy, env=RESTIC)
    at.done_with(copy)
    return sample


def b3sum(at: Round) -> Sample:
    """Both of its ways, mapped on all cores and read on one; the faster counts."""
    samples = [timed(["b3sum", *way, *at.sources], at.log("b3sum")) for way in ([], ["--no-mmap"])]
    return min(samples, key=lambda sample: sample.wall)


def fio(at: Round) -> Sample:
    """Reads the packs that `seed` left. Its own run time counts, not the seconds that it takes to set up and report."""
    packs = sorted((at.scratch / "array/motiongear/packs").iterdir())
    command = ["fio", "--name=packs", "--readonly", "--rw=read", "--direct=1", "--ioengine=io_uring", "--bs=1M", "--iodepth=32",
               "--file_service_type=sequential", "--output-format=json", f"--filename={':'.join(map(str, packs))}"]
    sample = timed(command, at.log("fio"))
    job = json.loads(sample.output[sample.output.index("{"):])["jobs"][0]
    total, read = sum(pack.stat().st_size for pack in packs), job["read"]["io_bytes"]
    # It leaves out what is less than a whole request at the end of a pack.
    if not total - len(packs) * MIB < read <= total:
        raise SystemExit(f"tests/bench: fio read {read} of {total} bytes")
    sample.wall = job["read"]["runtime"] / 1000 * total / read
    return sample


def disk_alone(at: Round) -> Sample:
    """Reads the data of the disk while it writes as much as `seed` left: what the machine's disk takes for the same bytes, when
    nobody computes anything. Its own run time counts, as in `fio`, though not its last flush."""
    extents = json.loads(subprocess.run(["qemu-img", "map", "-f", "raw", "--output=json", at.source], check=True, capture_output=True).stdout)
    reads = [(start, min(MIB, extent["start"] + extent["length"] - start)) for extent in extents if extent["data"]
             for start in range(extent["start"], extent["start"] + extent["length"], MIB)]
    log = at.fresh("reads.iolog")
    lines = ["fio version 2 iolog", f"{at.source} add", f"{at.source} open", *(f"{at.source} read {start} {n}" for start, n in reads),
             f"{at.source} close"]
    log.write_text("\n".join(lines) + "\n")
    stored = sum(pack.stat().st_size for pack in (at.scratch / "array/motiongear/packs").iterdir())
    copy = at.fresh("written")
    # As many requests in flight as the seed has: four reads, two writes.
    common = ["--direct=1", "--ioengine=io_uring"]
    command = ["fio", "--output-format=json", "--name=read", f"--read_iolog={log}", "--replay_no_stall=1", "--iodepth=4", *common,
               "--name=write", "--rw=write", "--bs=1M", f"--size={stored // MIB * MIB}", "--end_fsync=1", f"--filename={copy}",
               "--iodepth=2", *common]
    sample = timed(command, at.log("disk_alone"))
    jobs = json.loads(sample.output[sample.output.index("{"):])["jobs"]
    # With several in flight it counts some of the short requests by the length of another (fio 3.33): requests are compared, then.
    done = [sum(job[way]["total_ios"] for job in jobs) for way in ("read", "write")]
    if done != [len(reads), stored // MIB]:
        raise SystemExit(f"tests/bench: fio made {done} of {len(reads)} reads and {stored // MIB} writes")
    sample.wall = max(job[way]["runtime"] for job in jobs for way in ("read", "write")) / 1000
    remove(copy)
    return sample
