#!/usr/bin/env python3
"""A second reader of the MotionGear format, written from FORMAT.md alone, as proof that it suffices.

    reader.py ARRAY MACHINE/DISK FILE --trust ALLOWED_SIGNERS [--identity AGE_KEY]

Restores one disk of a sealed shipment to FILE. Python's standard library and stock tools only: ssh-keygen, b3sum, zstd, and age for
encrypted shipments. It is slow (AES-GCM in plain Python) and meant for fixtures. Numbers in comments are sections of FORMAT.md.
Exit codes: 0 done, 3 damaged, 4 not trusted.
"""

import argparse
import hashlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
import tempfile
import uuid
import zlib

PAGE, HEADER = 4096, 128


class Refused(Exception):
    """Message and exit code."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def untrusted(message):
    raise Refused(4, message)


def damaged(message):
    raise Refused(3, message)


def tool(words, data=b"", check=True):
    done = subprocess.run(words, input=data, capture_output=True)
    if check and done.returncode != 0:
        untrusted(f"{words[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done


def b3(data):
    return tool(["b3sum", "--no-names"], data).stdout.decode().strip()


# ---- 1, 2: documents and second copies -------------------------------------------------------------------------


class Array:
    def __init__(self, path):
        self.root = os.path.join(os.path.realpath(path), "motiongear")

    def read(self, name, limit):
        path = os.path.join(self.root, name)
        if os.path.islink(path) or os.path.realpath(path) != path or not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        return data if len(data) <= limit else None

    def pinned(self, name, pin, limit):
        """The first copy, or the second where the first is not what is pinned (2)."""
        for copy in (name, "copy/" + name):
            data = self.read(copy, limit)
            if data is not None and b3(data) == pin:
                return data
            print(f"{copy}: not what is pinned", file=sys.stderr)
        return None


def parse(data, fields, optional=()):
    """Strict JSON (1): format first, then no field unknown, missing or repeated."""

    def once(pairs):
        if len({key for key, _ in pairs}) != len(pairs):
            untrusted("a field is repeated")
        return dict(pairs)

    document = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    if document.get("format") != 1:
        untrusted(f"format {document.get('format')} is not supported")
    if not set(fields) <= set(document) <= set(fields) | set(optional):
        untrusted(f"fields {sorted(document)} instead of {sorted(fields)}")
    return document


SEAL = "format shipment site signer sealed_at pins manifest packs disks excluded tool".split()
SHIPMENT = (
    "format shipment site label asset_tag block_bytes suite recipients hash checksum media created_at tool".split()
)


# ---- 4: trust --------------------------------------------------------------------------------------------------


def signed(data, signature, signer, namespace, trust):
    if data is None or signature is None:
        return False
    with tempfile.NamedTemporaryFile() as file:
        file.write(signature)
        file.flush()
        words = ["ssh-keygen", "-Y", "verify", "-f", trust, "-I", signer, "-n", namespace, "-s", file.name]
        return tool(words, data, check=False).returncode == 0


def valid_pair(array, prefix, trust):
    data = array.read(prefix + "seal.json", 16 << 20)
    signature = array.read(prefix + "seal.json.sig", 64 << 10)
    if data is None or signature is None:
        return None
    try:
        # Nobody's words are used before the signature holds; only the name to check it for is looked up.
        signer = json.loads(data.decode("utf-8"))["signer"]
        if not isinstance(signer, str) or not signed(data, signature, signer, "motiongear-seal", trust):
            return None
        seal = parse(data, SEAL, ["supersedes"])
    except (ValueError, KeyError, TypeError):
        return None
    if signer.count("@") != 1 or signer.split("@")[1] != seal["site"]["name"]:
        return None
    return b3(data), seal


def choose_seal(array, trust):
    first, second = valid_pair(array, "", trust), valid_pair(array, "copy/", trust)
    if first is None and second is None:
        untrusted("no valid pair of seal and signature")
    if first is None or second is None or first[0] == second[0]:
        return (first or second)[1]
    if first[1]["shipment"] == second[1]["shipment"]:
        if second[1].get("supersedes") == first[0]:
            return second[1]
        if first[1].get("supersedes") == second[0]:
            return first[1]
    untrusted("two valid seals, neither of which supersedes the other")


# ---- 5: age and AES-256-GCM ------------------------------------------------------------------------------------


def age(data, identity):
    if identity is None:
        untrusted("the shipment is encrypted, and no identity was given")
    return tool(["age", "-d", "-i", identity], data).stdout


def aes_tables():
    box, value = [0] * 256, 1
    inverse = 1
    while True:
        value = value ^ (value << 1 & 0xFF) ^ (0x1B if value & 0x80 else 0)
        for shift in (1, 2, 4):
            inverse ^= inverse << shift & 0xFF
        inverse ^= 0x09 if inverse & 0x80 else 0
        rotated = inverse
        result = 0x63
        for _ in range(5):
            result ^= rotated
            rotated = (rotated << 1 | rotated >> 7) & 0xFF
        box[value] = result
        if value == 1:
            box[0] = 0x63
            return box


BOX = aes_tables()
DOUBLE = [b << 1 & 0xFF ^ (0x1B if b & 0x80 else 0) for b in range(256)]


class Gcm:
    """AES-256-GCM (FIPS 197, NIST SP 800-38D)."""

    def __init__(self, key):
        words = [list(key[i : i + 4]) for i in range(0, 32, 4)]
        constant = 1
        for i in range(8, 60):
            word = list(words[i - 1])
            if i % 8 == 0:
                word = [BOX[b] for b in word[1:] + word[:1]]
                word[0] ^= constant
                constant = DOUBLE[constant]
            elif i % 8 == 4:
                word = [BOX[b] for b in word]
            words.append([a ^ b for a, b in zip(words[i - 8], word)])
        self.rounds = [sum(words[i : i + 4], []) for i in range(0, 60, 4)]
        self.hash_key = int.from_bytes(self.block(bytes(16)), "big")

    def block(self, data):
        state = [a ^ b for a, b in zip(data, self.rounds[0])]
        for number in range(1, 15):
            state = [BOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
            if number < 14:
                mixed = []
                for i in range(0, 16, 4):
                    a, b, c, d = state[i : i + 4]
                    every = a ^ b ^ c ^ d
                    mixed += [
                        a ^ every ^ DOUBLE[a ^ b],
                        b ^ every ^ DOUBLE[b ^ c],
                        c ^ every ^ DOUBLE[c ^ d],
                        d ^ every ^ DOUBLE[d ^ a],
                    ]
                state = mixed
            state = [a ^ b for a, b in zip(state, self.rounds[number])]
        return bytes(state)

    def multiply(self, x):
        product, y = 0, self.hash_key
        for bit in range(127, -1, -1):
            if x >> bit & 1:
                product ^= y
            y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
        return product

    def open(self, nonce, aad, payload):
        """The plaintext, or None if the tag does not match."""
        data, tag = payload[:-16], payload[-16:]
        total = 0
        for part in (aad, data):
            for i in range(0, len(part), 16):
                total = self.multiply(total ^ int.from_bytes(part[i : i + 16].ljust(16, b"\0"), "big"))
        total = self.multiply(total ^ (len(aad) * 8 << 64 | len(data) * 8))
        mask = self.block(nonce + struct.pack(">I", 1))
        if bytes(a ^ b for a, b in zip(total.to_bytes(16, "big"), mask)) != tag:
            return None
        plain = bytearray()
        for i in range(0, len(data), 16):
            stream = self.block(nonce + struct.pack(">I", 2 + i // 16))
            plain += bytes(a ^ b for a, b in zip(data[i : i + 16], stream))
        return bytes(plain)


def content_key(array, seal, process, identity):
    name = f"keys/{process:04}.age"
    if name not in seal["pins"]:
        untrusted(f"no envelope for writing process {process}")
    envelope = array.pinned(name, seal["pins"][name], 64 << 10)
    if envelope is None:
        damaged(f"{name}: no copy is what is pinned")
    plain = parse(age(envelope, identity), "format shipment process suite key".split())
    if (plain["shipment"], plain["process"], plain["suite"]) != (seal["shipment"], process, "aes-256-gcm"):
        untrusted(f"{name}: about something else")
    return Gcm(bytes.fromhex(plain["key"]))


# ---- 7: the manifest -------------------------------------------------------------------------------------------


def open_manifest(array, seal, encrypted, identity, work):
    pin = seal["manifest"]
    data = array.pinned(pin["file"], pin["blake3"], pin["bytes"])
    if data is None or len(data) != pin["bytes"] or hashlib.sha256(data).hexdigest() != pin["sha256"]:
        untrusted("manifest: no copy is what the seal says")
    if encrypted:
        data = age(data, identity)
    if (len(data), b3(data)) != (pin["plain"]["bytes"], pin["plain"]["blake3"]):
        untrusted("manifest: decrypted, it is not what the seal says")
    path = os.path.join(work, "manifest.db")
    with open(path, "wb") as file:
        file.write(data)
    db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    db.execute("PRAGMA trusted_schema = OFF")
    # The schema is exactly that of FORMAT.md.
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "..", "FORMAT.md"), encoding="utf-8") as file:
        sql = file.read().split("```sql\n")[1].split("```")[0]
    ours = sqlite3.connect(":memory:")
    ours.executescript(sql)
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2"
    pragmas = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if pragmas != [0x4D474D46, 1] or db.execute(schema).fetchall() != ours.execute(schema).fetchall():
        untrusted("manifest: another schema")
    return db


# ---- 6: packs and records --------------------------------------------------------------------------------------


def read_record(file, seal, encrypted, want, keys):
    """The block that the row names; `want` is (disk, generation, block, plain_bytes, offset, stored, codec)."""
    disk, generation, block, plain_bytes, offset, stored, codec = want
    where = f"disk {disk}, block {block} at byte {offset}"
    file.seek(offset)
    length = -(-(HEADER + stored) // PAGE) * PAGE
    record = file.read(length)
    if len(record) != length:
        damaged(f"{where}: the pack ends within the record")
    header = record[:HEADER]
    magic, version, kind, found_codec, cipher = struct.unpack_from("<8sHBBB", header)
    shipment = str(uuid.UUID(bytes=header[16:32]))
    process, found_disk, found_generation = struct.unpack_from("<III", header, 32)
    found_block, found_plain, packed, found_stored = struct.unpack_from("<QIII", header, 48)
    nonce, payload_crc = struct.unpack_from("<QI", header, 72)
    reserved = header[13:16] + header[44:48] + header[68:72] + header[84:124]
    if magic != b"MGRECORD" or struct.unpack_from("<I", header, 124)[0] != zlib.crc32(header[:124]) or any(reserved):
        damaged(f"{where}: no good record header")
    if (version, kind) != (1, 1) or found_codec > 1 or cipher > 1:
        untrusted(f"{where}: not supported")
    if (shipment, found_disk, found_generation, found_block) != (seal["shipment"], disk, generation, block):
        damaged(f"{where}: another record")
    if (found_plain, found_stored, found_codec) != (plain_bytes, stored, codec):
        damaged(f"{where}: other lengths than in the manifest")
    if packed + 16 * cipher != stored or (packed != plain_bytes if codec == 0 else not 1 <= packed < plain_bytes):
        damaged(f"{where}: lengths contradict each other")
    payload = record[HEADER : HEADER + stored]
    if zlib.crc32(payload) != payload_crc or any(record[HEADER + stored :]):
        damaged(f"{where}: payload or padding damaged")
    if bool(cipher) != encrypted:
        untrusted(f"{where}: a plaintext record in an encrypted shipment, or the other way round")
    if cipher:
        payload = keys(process).open(bytes(4) + struct.pack("<Q", nonce), header[:80], payload)
        if payload is None:
            damaged(f"{where}: the tag does not match")
    if codec == 1:
        # Reading one byte more than expected bounds the output whatever the frame promises.
        with tempfile.TemporaryFile() as packed_file:
            packed_file.write(payload)
            packed_file.seek(0)
            unpack = subprocess.Popen(["zstd", "-dcq"], stdin=packed_file, stdout=subprocess.PIPE)
            payload = unpack.stdout.read(plain_bytes + 1)
            unpack.stdout.close()
            unpack.wait()
    if len(payload) != plain_bytes:
        damaged(f"{where}: expected {plain_bytes} bytes after decompression")
    return payload


def restore(arguments):
    array = Array(arguments.array)
    seal = choose_seal(array, arguments.trust)
    document = array.pinned("shipment.json", seal["pins"]["shipment.json"], 1 << 20)
    if document is None:
        untrusted("shipment.json: no copy is what is pinned")
    shipment = parse(document, SHIPMENT, ["signer"])
    if (shipment["shipment"], shipment["site"]) != (seal["shipment"], seal["site"]):
        untrusted("shipment.json: another shipment or site")
    if "signer" in shipment:
        signature = array.read("shipment.json.sig", 64 << 10) or array.read("copy/shipment.json.sig", 64 << 10)
        if not signed(document, signature, shipment["signer"], "motiongear-shipment", arguments.trust):
            untrusted("shipment.json.sig: no allowed signature")
    if len(shipment["media"]) != 1 or any(p["medium"] != shipment["media"][0]["number"] for p in seal["packs"]):
        untrusted("shipment.json: expected one medium, that of every pack")
    encrypted = shipment["suite"] == "aes-256-gcm+age-x25519"
    if encrypted != (seal["manifest"]["file"] == "manifest.db.age"):
        untrusted("shipment.json: its suite does not fit the manifest")

    disks = [d for d in seal["disks"] if f"{d['machine']}/{d['disk']}" == arguments.disk]
    if len(disks) != 1:
        untrusted(f"no disk {arguments.disk} in the seal")
    disk = disks[0]
    packs, opened = {pack["file"]: pack for pack in seal["packs"]}, {}
    cache = {}

    def keys(process):
        if process not in cache:
            cache[process] = content_key(array, seal, process, arguments.identity)
        return cache[process]

    with tempfile.TemporaryDirectory() as work:
        db = open_manifest(array, seal, encrypted, arguments.identity, work)
        rows = db.execute(
            "SELECT generation.id, generation.bytes, disk.uuid FROM generation JOIN disk ON disk.number = generation.disk "
            "WHERE disk.number = ? AND generation.number = ?",
            (disk["id"], disk["generation"]),
        ).fetchall()
        if len(rows) != 1 or rows[0][1:] != (disk["bytes"], disk["uuid"]):
            untrusted("manifest: says something else than the seal")
        size, block_bytes = disk["bytes"], disk["block_bytes"]
        partial = arguments.file + ".partial"
        with open(partial, "wb") as out:
            out.truncate(size)
            expected = 0
            for block, state, number, offset, stored, codec in db.execute(
                "SELECT block, state, pack, offset, stored, codec FROM block WHERE generation = ? ORDER BY block",
                (rows[0][0],),
            ):
                if block != expected or block * block_bytes >= size:
                    untrusted(f"manifest: expected a row for block {expected}, found {block}")
                expected += 1
                place = (number, offset, stored, codec)
                if all(value is None for value in place) and state in (0, 2):
                    continue
                if None in place or state not in (1, 2) or offset % PAGE or not PAGE <= offset <= 8 << 30 or stored < 1:
                    untrusted(f"manifest: row of block {block} breaks the rules")
                name = f"packs/{number:08}.pack"
                if name not in packs:
                    untrusted(f"manifest: {name} is not in the seal")
                if name not in opened:
                    path = os.path.join(array.root, name)
                    if os.path.realpath(path) != path or not os.path.isfile(path):
                        raise Refused(3, f"{name}: missing")
                    opened[name] = open(path, "rb")
                    check_pack_header(opened[name].read(PAGE), seal, number, packs[name]["medium"])
                length = min(block_bytes, size - block * block_bytes)
                want = (disk["id"], disk["generation"], block, length, offset, stored, codec)
                out.seek(block * block_bytes)
                out.write(read_record(opened[name], seal, encrypted, want, keys))
            if expected != -(-size // block_bytes):
                untrusted(f"manifest: {expected} rows")
    # The digest of the whole proves every block (7).
    found = tool(["b3sum", "--no-names", partial]).stdout.decode().strip()
    if found != disk["digest"]:
        damaged(f"{arguments.disk}: expected digest {disk['digest']}, found {found}")
    os.rename(partial, arguments.file)


def check_pack_header(page, seal, number, medium):
    if len(page) != PAGE or page[:8] != b"MGPACK\0\0" or struct.unpack_from("<I", page, 60)[0] != zlib.crc32(page[:60]):
        damaged(f"pack {number}: no good header")
    found = (struct.unpack_from("<H", page, 8)[0], str(uuid.UUID(bytes=page[16:32])), *struct.unpack_from("<II", page, 32))
    if found != (1, seal["shipment"], number, medium) or any(page[10:16] + page[40:60] + page[64:]):
        damaged(f"pack {number}: another pack's header")


def main():
    parser = argparse.ArgumentParser(description="Restores a disk of a MotionGear array.")
    for name in ("array", "disk", "file"):
        parser.add_argument(name)
    parser.add_argument("--trust", required=True)
    parser.add_argument("--identity")
    arguments = parser.parse_args()
    try:
        restore(arguments)
    except Refused as refused:
        if os.path.exists(arguments.file + ".partial"):
            os.remove(arguments.file + ".partial")
        print(f"refused: {refused}", file=sys.stderr)
        sys.exit(refused.code)


if __name__ == "__main__":
    main()
