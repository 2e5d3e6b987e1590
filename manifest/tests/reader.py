#!/usr/bin/env python3
"""A second checker and reader of the MotionGear format, written from FORMAT.md alone, as proof that it suffices.

    reader.py ARRAY... [--trust ALLOWED_SIGNERS] [--identity AGE_KEY] [--expect-seal SEAL] [--verify-time TIME]
              [--restore MACHINE/DISK FILE]

Checks each array and ends with 0 good, 3 damaged, missing or extra, 4 not trusted, 1 nothing to check: of several arrays it prints
a line CODE ARRAY each and ends with the highest code. --restore, also several times, writes a disk once every block of it is proven.
Python's standard library and stock tools only: ssh-keygen, b3sum, zstd, and age for encrypted shipments. It is slow (AES-GCM and
leaves in plain Python) and meant for fixtures. Numbers in comments are sections of FORMAT.md.
"""

import argparse
import base64
import binascii
import calendar
import functools
import hashlib
import itertools
import json
import os
import re
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import uuid
import zlib

PAGE, HEADER, PIECE = 4096, 128, 1 << 20
MAX_BLOCK = MAX_WINDOW = 16 << 20


class Untrusted(Exception):
    """Exit code 4: nothing that follows is looked at."""


class Damaged(Exception):
    """One thing of the array is not what it must be; exit code 3, and reading goes on."""


class NothingToCheck(Exception):
    """Exit code 1."""


def require(condition, message):
    if not condition:
        raise Untrusted(message)


def intact(condition, message):
    if not condition:
        raise Damaged(message)


def run(words, data=b""):
    return subprocess.run(words, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@functools.lru_cache(512)
def b3(data):
    return run(["b3sum", "--no-names"], data).stdout.decode().strip()


def b3_of_file(path):
    # By its content where it is short: many arrays that are checked at once hold the same files.
    if os.path.getsize(path) <= PIECE:
        with open(path, "rb") as file:
            return b3(file.read())
    return run(["b3sum", "--no-names", path]).stdout.decode().strip()


# ---- 1, 2: files, none of them behind a link -------------------------------------------------------------------

FOLDERS = ["packs", "keys", "custody", "report", "copy", "copy/keys"]


class Array:
    def __init__(self, path):
        self.root = os.path.join(os.path.realpath(path), "motiongear")
        top = self.look("")
        if top is None:
            raise NothingToCheck("no folder motiongear")
        self.device = top.st_dev
        for name in [""] + FOLDERS:
            found = self.look(name)
            sound = found is None or (stat.S_ISDIR(found.st_mode) and found.st_dev == self.device)
            require(sound, f"motiongear/{name}: no folder of this file system")

    def look(self, name):
        try:
            # A slash at the end would follow a link.
            return os.lstat(os.path.join(self.root, name) if name else self.root)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, name):
        """The open file and its length. FileNotFoundError where it is missing, Damaged where it is no regular file."""
        found = self.look(name)
        if found is None:
            raise FileNotFoundError(name)
        intact(stat.S_ISREG(found.st_mode) and found.st_dev == self.device, f"{name}: no regular file of this file system")
        file = os.fdopen(os.open(os.path.join(self.root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        return file, os.fstat(file.fileno()).st_size

    def read(self, name, limit):
        """The bytes of a file, or None if it is missing, no regular file or longer than the limit."""
        try:
            file, _ = self.open(name)
            with file:
                data = file.read(limit + 1)
        except (OSError, Damaged):
            return None
        return data if len(data) <= limit else None

    def pinned(self, name, pin, limit):
        """The first copy, or the second where the first is not what is pinned (2)."""
        found = None
        for copy in ("copy/" + name, name):
            data = self.read(copy, limit)
            if data is not None and b3(data) == pin:
                found = data
            else:
                print(f"warning: {copy}: not what is pinned", file=sys.stderr)
        return found

    def list(self, folder, most):
        """The names in a folder, at most one more than `most`; none where there is no folder."""
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                return sorted(entry.name for entry in itertools.islice(entries, most + 1))
        except FileNotFoundError:
            return []


# ---- 1: names, texts, times, JSON ------------------------------------------------------------------------------

HIDDEN = "\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
NO_TEXT = re.compile(f"[\x00-\x1f\x7f-\x9f{HIDDEN}\ud800-\udfff]")
NO_NAME = re.compile(r"[/\\:@=]")
TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]{1,9})?Z")
HEX = re.compile("[0-9a-f]{64}")


def is_text(value, limit):
    if not isinstance(value, str) or NO_TEXT.search(value):
        return False
    return len(value.encode()) <= limit


def is_name(value):
    return is_text(value, 100) and value != "" and value[0] not in "-." and value.strip() == value and not NO_NAME.search(value)


def is_signer(value):
    return isinstance(value, str) and value.count("@") == 1 and all(is_name(part) for part in value.split("@"))


def site_of(signer):
    return signer.split("@")[1]


def is_number(value, limit=1 << 64):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def is_id(value):
    return is_number(value, 1 << 32)


def is_uuid(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", value) is not None


def is_digest(value):
    return isinstance(value, str) and HEX.fullmatch(value) is not None


def is_time(value):
    found = TIME.fullmatch(value) if isinstance(value, str) else None
    if not found:
        return False
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    # 2000 has the leap days that the year 0 has, for which Python has no calendar.
    if not (1 <= month <= 12 and 1 <= day <= calendar.monthrange(year or 2000, month)[1]):
        return False
    return hour < 24 and minute < 60 and second < 60 and value[:19] <= "9999-12-30T22:00:00"


def same_time(one, other):
    def plain(text):
        seconds, _, fraction = text[:-1].partition(".")
        return seconds, fraction.rstrip("0")

    return plain(one) == plain(other)


def is_list(value, each, limit=1 << 30):
    return isinstance(value, list) and len(value) <= limit and all(each(item) for item in value)


def is_object(value, fields, optional=()):
    """An object with these fields, each of which the named rule takes."""
    if not isinstance(value, dict) or not set(fields) - set(optional) <= set(value) <= set(fields):
        return False
    return all(rule(value[name]) for name, rule in fields.items() if name in value)


def each_once(values):
    values = list(values)
    return len(values) == len(set(values))


def parse(data, limit, fields, optional=()):
    """A document (1): strict JSON with these fields and no other; None if it is none."""

    def once(pairs):
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a field is repeated")
        return dict(pairs)

    def refuse(text):
        raise ValueError(f"{text} is no integer")

    def integer(text):
        return refuse(text) if text == "-0" else int(text)

    if len(data) > limit:
        return None
    try:
        document = json.loads(
            data.decode(), object_pairs_hook=once, parse_float=refuse, parse_constant=refuse, parse_int=integer
        )
    except (ValueError, RecursionError):
        return None
    return document if is_object(document, {"format": lambda n: n == 1 and is_id(n), **fields}, optional) else None


TOKEN = re.compile(
    r'[ \t\n\r]*(?:([\[{\]},:])|("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
    r"|(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null))"
)


def is_json(text):
    """RFC 8259, however deep: Python's own reader gives up where its stack ends."""
    open_, expect, at, text = [], "value", 0, text.rstrip(" \t\n\r")
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            return False
        at = found.end()
        sign, string, scalar = found.groups()
        if sign and sign in "[{" and expect in ("value", "value or end"):
            open_.append(sign)
            expect = "value or end" if sign == "[" else "key or end"
            continue
        if sign and sign in "]}":
            closes = expect in ("comma or end", "value or end" if sign == "]" else "key or end")
            if not closes or not open_ or open_.pop() != {"]": "[", "}": "{"}[sign]:
                return False
            expect = "comma or end"
        elif expect in ("key", "key or end") and string:
            expect = "colon"
            continue
        elif expect == "colon" and sign == ":":
            expect = "value"
            continue
        elif expect == "comma or end" and sign == "," and open_:
            expect = "value" if open_[-1] == "[" else "key"
            continue
        elif expect in ("value", "value or end") and (string or scalar):
            expect = "comma or end"
        else:
            return False
    return not open_ and expect == "comma or end"


# ---- 3, 4: the documents ---------------------------------------------------------------------------------------


def text(limit):
    return lambda value: is_text(value, limit)


def one_of(*words):
    return lambda value: value in words and isinstance(value, str)


def is_block_bytes(value):
    return is_number(value) and 65536 <= value <= MAX_BLOCK and value & (value - 1) == 0


def is_site(value):
    return is_object(value, {"uuid": is_uuid, "name": is_name})


def is_medium(value):
    return is_object(value, {"number": is_id, "uuid": is_uuid, "serial": text(500)})


SHIPMENT = {
    "shipment": is_uuid,
    "site": is_site,
    "label": text(200),
    "asset_tag": text(100),
    "block_bytes": is_block_bytes,
    "suite": one_of("plaintext", "aes-256-gcm+age-x25519"),
    "recipients": lambda value: is_list(value, text(200), 32) and each_once(value),
    "hash": one_of("blake3"),
    "checksum": one_of("crc32"),
    "media": lambda value: is_list(value, is_medium) and len(value) == 1,
    "created_at": is_time,
    "tool": text(100),
    "signer": text(300),
}


def numbered(value, pattern, digits):
    """The number in a file's name, filled with zeros to the digits given and never more of them; None for another name."""
    found = re.fullmatch(pattern, value) if isinstance(value, str) else None
    if not found or len(found[1]) > 10 or not is_id(int(found[1])) or found[1] != f"{int(found[1]):0{digits}}":
        return None
    return int(found[1])


def pack_number(file):
    return numbered(file, r"packs/([0-9]+)\.pack", 8)


def envelope_number(file):
    return numbered(file, r"keys/([0-9]+)\.age", 4)


def is_pack(value):
    fields = {
        "file": lambda file: pack_number(file) is not None,
        "medium": is_id,
        "bytes": lambda n: is_number(n) and PAGE <= n <= 8 << 30 and n % PAGE == 0,
        "records": is_number,
        "blake3": is_digest,
    }
    return is_object(value, fields) and value["records"] <= value["bytes"] // PAGE


def is_disk(value):
    fields = {
        "id": is_id,
        "machine": is_name,
        "disk": is_name,
        "uuid": is_uuid,
        "generation": is_id,
        "bytes": lambda n: is_number(n, 1 << 63),
        "block_bytes": is_block_bytes,
        "digest": is_digest,
        "consistency": one_of("consistent", "fuzzy"),
        "basis": one_of("none", "hook", "source", "asserted"),
        "blocks": lambda blocks: is_object(blocks, dict.fromkeys(("stored", "zero", "unreadable"), is_number)),
    }
    if not is_object(value, fields):
        return False
    blocks = -(-value["bytes"] // value["block_bytes"])
    return sum(value["blocks"].values()) == blocks and (value["consistency"] == "fuzzy") == (value["basis"] == "none")


def is_sealed_manifest(value):
    sums = {"bytes": lambda n: is_number(n, (1 << 40) + 1), "blake3": is_digest, "sha256": is_digest}
    fields = {"file": one_of("manifest.db", "manifest.db.age"), "plain": lambda plain: is_object(plain, sums), **sums}
    if not is_object(value, fields):
        return False
    return value["file"] != "manifest.db" or all(value["plain"][name] == value[name] for name in sums)


def is_pins(value):
    if not isinstance(value, dict) or len(value) > 10001 or "shipment.json" not in value:
        return False
    return all(
        is_digest(pin) and (file == "shipment.json" or envelope_number(file) is not None) for file, pin in value.items()
    )


def is_disks(value):
    return is_list(value, is_disk, 10000) and (
        each_once(disk["id"] for disk in value)
        and each_once(disk["uuid"] for disk in value)
        and each_once((disk["machine"], disk["disk"]) for disk in value)
    )


SEAL = {
    "shipment": is_uuid,
    "site": is_site,
    "signer": is_signer,
    "sealed_at": is_time,
    "supersedes": is_digest,
    "pins": is_pins,
    "manifest": is_sealed_manifest,
    "packs": lambda value: is_list(value, is_pack, 65536) and each_once(pack["file"] for pack in value),
    "disks": is_disks,
    "excluded": lambda value: is_list(
        value, lambda disk: is_object(disk, {"machine": is_name, "disk": is_name, "reason": text(500)}), 10000
    ),
    "tool": text(100),
}

EVENT = {
    "shipment": is_uuid,
    "seal": is_digest,
    "number": lambda n: is_number(n) and 1 <= n <= 999,
    "event": one_of("dispatched", "received"),
    "at": is_time,
    "signer": text(300),
    "person": text(300),
    "box_seals": lambda value: is_list(value, text(100), 100),
    "place": text(300),
    "note": text(2000),
    "previous": lambda value: value is None or is_object(value, {"event": is_digest, "signature": is_digest}),
}


# ---- 4: signatures and the seal --------------------------------------------------------------------------------

KEY_KINDS = (b"ssh-ed25519", b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384")
BEGIN, END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"


def signing_key(signature):
    """The public key in an armored SSHSIG, of the kinds of the page; None if there is none."""
    try:
        blob = base64.b64decode(b"".join(signature.split(b"\n")[1:-2]), validate=True)
        version, length = struct.unpack_from(">II", blob, 6)
        key = blob[14 : 14 + length]
        kind = key[4 : 4 + struct.unpack_from(">I", key)[0]]
    except (binascii.Error, struct.error):
        return None
    text = base64.b64encode(blob)
    lines = [BEGIN, *(text[at : at + 70] for at in range(0, len(text), 70)), END, b""]
    if signature != b"\n".join(lines):
        return None
    return key if blob[:6] == b"SSHSIG" and version == 1 and kind in KEY_KINDS else None


@functools.lru_cache(512)
def key_of(data, signature, signer, namespace, trust):
    """The key that signed, if its signature holds and (with a trust file, as of a time) is allowed; else None."""
    key = None if data is None or signature is None else signing_key(signature)
    if key is None or not is_signer(signer):
        return None
    path, at = trust
    with tempfile.NamedTemporaryFile() as file:
        file.write(signature)
        file.flush()
        if path is None:
            words = ["ssh-keygen", "-Y", "check-novalidate"]
        else:
            words = ["ssh-keygen", "-Y", "verify", "-f", path, "-I", signer]
            words += ["-Overify-time=" + re.sub("[-:T]", "", at[:19]) + "Z"] if at else []
        return key if run(words + ["-n", namespace, "-s", file.name], data).returncode == 0 else None


def valid_pair(array, prefix, trust):
    """(digest, seal) of one pair, or None (4, step 1)."""
    data = array.read(prefix + "seal.json", 16 << 20)
    signature = array.read(prefix + "seal.json.sig", 64 << 10)
    seal = None if data is None or signature is None else parse(data, 16 << 20, SEAL, ["supersedes"])
    if seal is None or site_of(seal["signer"]) != seal["site"]["name"]:
        return None
    if key_of(data, signature, seal["signer"], "motiongear-seal", trust) is None:
        return None
    return b3(data), seal


def choose_seal(array, trust):
    files = [prefix + name for prefix in ("", "copy/") for name in ("seal.json", "seal.json.sig")]
    if all(array.look(file) is None for file in files):
        raise NothingToCheck("it is not sealed")
    first, second = valid_pair(array, "", trust), valid_pair(array, "copy/", trust)
    require(first or second, "no valid pair of seal and signature")
    if not first or not second or first[0] == second[0]:
        return first or second
    if first[1]["shipment"] == second[1]["shipment"]:
        if second[1].get("supersedes") == first[0]:
            return second
        if first[1].get("supersedes") == second[0]:
            return first
    raise Untrusted("two valid seals, neither of which supersedes the other")


BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def is_expected(said, digest):
    if said.lower() == digest:
        return True
    number = int(digest[:15], 16)
    code = "".join(BASE32[number >> shift & 31] for shift in range(55, -5, -5))
    said = re.sub("[- ]", "", said).upper()
    return said.replace("I", "1").replace("L", "1").replace("O", "0") == code


def pinned_shipment(array, seal, trust, found):
    document = array.pinned("shipment.json", seal["pins"]["shipment.json"], 1 << 20)
    require(document is not None, "shipment.json: no copy is what is pinned")
    shipment = parse(document, 1 << 20, SHIPMENT, ["signer"])
    require(shipment is not None, "shipment.json: it breaks a rule")
    encrypted = shipment["suite"] != "plaintext"
    require(encrypted == bool(shipment["recipients"]), "shipment.json: recipients exactly where it is encrypted")
    require((shipment["shipment"], shipment["site"]) == (seal["shipment"], seal["site"]), "shipment.json: another shipment")
    require(encrypted == (seal["manifest"]["file"] == "manifest.db.age"), "shipment.json: its suite fits no such manifest")
    require(encrypted or len(seal["pins"]) == 1, "shipment.json: envelopes in a plaintext shipment")
    require(all(p["medium"] == shipment["media"][0]["number"] for p in seal["packs"]), "shipment.json: another medium")
    require(all(d["block_bytes"] == shipment["block_bytes"] for d in seal["disks"]), "shipment.json: another block_bytes")
    signatures = ["shipment.json.sig", "copy/shipment.json.sig"]
    if "signer" in shipment:
        holds = [
            key_of(document, array.read(name, 64 << 10), shipment["signer"], "motiongear-shipment", trust)
            for name in signatures
        ]
        require(any(holds), "shipment.json.sig: no allowed signature")
    elif array.look(signatures[0]) is not None:
        found.append("extra: shipment.json.sig: shipment.json names no signer")
    return shipment


# ---- 5: age and AES-256-GCM ------------------------------------------------------------------------------------


@functools.lru_cache(64)
def age(data, identity, limit):
    """The plaintext of an age file, or None if it does not open or is longer than the limit."""
    end = data.find(b"\n---", 0, 64 << 10)
    if not data.startswith(b"age-encryption.org/v1\n") or end < 0 or b"\n-> scrypt " in data[:end]:
        return None
    done = run(["age", "-d", "-i", identity], data)
    return done.stdout if done.returncode == 0 and len(done.stdout) <= limit else None


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

    @functools.lru_cache(1024)
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


@functools.lru_cache(256)
def content_key(envelope, shipment, process, identity):
    plain = age(envelope, identity, PAGE)
    require(plain is not None, f"keys/{process:04}.age: it does not open")
    head = f'{{"format":1,"shipment":"{shipment}","process":{process},"suite":"aes-256-gcm","key":"'.encode()
    key = plain[len(head) : len(head) + 64].decode("latin-1")
    require(is_digest(key) and plain == head + key.encode() + b'"}\n', f"keys/{process:04}.age: about something else")
    return Gcm(bytes.fromhex(key))


# ---- 7: BLAKE3, leaves and digests -----------------------------------------------------------------------------

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
MIX = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15), (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]


def compress(cv, block, counter, length, flags):
    m = struct.unpack("<16I", block)
    v = [*cv, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, length, flags]
    for number in range(7):
        for i, (a, b, c, d) in enumerate(MIX):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = va + vb + m[2 * i] & 0xFFFFFFFF
            vd ^= va
            vd = (vd >> 16 | vd << 16) & 0xFFFFFFFF
            vc = vc + vd & 0xFFFFFFFF
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & 0xFFFFFFFF
            va = va + vb + m[2 * i + 1] & 0xFFFFFFFF
            vd ^= va
            vd = (vd >> 8 | vd << 24) & 0xFFFFFFFF
            vc = vc + vd & 0xFFFFFFFF
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7 | vb << 25) & 0xFFFFFFFF, vc, vd
        m = [m[i] for i in ORDER]
    return [v[i] ^ v[i + 8] for i in range(8)]


def merge(values, flags=0):
    """The chaining value over those of the left subtree, a power of two of them, and the right one."""
    if len(values) == 1:
        return values[0]
    left = 1 << (len(values) - 1).bit_length() - 1
    return compress(IV, struct.pack("<16I", *merge(values[:left]), *merge(values[left:])), 0, 64, PARENT | flags)


@functools.lru_cache(1024)
def leaf(data, offset):
    chunks = []
    for start in range(0, len(data), 1024):
        chunk, cv = data[start : start + 1024], IV
        for at in range(0, len(chunk), 64):
            part = chunk[at : at + 64]
            flags = (CHUNK_START if at == 0 else 0) | (CHUNK_END if at + 64 >= len(chunk) else 0)
            cv = compress(cv, part.ljust(64, b"\0"), (offset + start) // 1024, len(part), flags)
        chunks.append(cv)
    return struct.pack("<8I", *merge(chunks))


class Merger:
    """Merges the leaves of a disk as they come, and keeps one value a level."""

    def __init__(self):
        self.count, self.values = 0, []

    def push(self, leaf):
        self.count += 1
        self.values.append(struct.unpack("<8I", leaf))
        # All but the last two of a whole subtree: which of them is merged with ROOT, the end decides.
        finished = self.count - 1
        while len(self.values) > 2 and finished & 1 == 0 and finished:
            right = self.values.pop(-2)
            self.values[-2] = merge([self.values[-2], right])
            finished >>= 1

    def digest(self):
        values = list(self.values)
        while len(values) > 2:
            right = values.pop()
            values[-1] = merge([values[-1], right])
        return struct.pack("<8I", *merge(values, ROOT)).hex()


# ---- 7: the manifest -------------------------------------------------------------------------------------------


def copy_file(array, name, pin, target):
    """Copies what lies on the array, never more than is sealed, and says whether that is it."""
    try:
        file, length = array.open(name)
    except (OSError, Damaged):
        return False
    sha = hashlib.sha256()
    with file, open(target, "wb") as out:
        left = pin["bytes"] if length == pin["bytes"] else 0
        while left and (piece := file.read(min(PIECE, left))):
            sha.update(piece)
            out.write(piece)
            left -= len(piece)
    return length == pin["bytes"] and left == 0 and sha.hexdigest() == pin["sha256"] and b3_of_file(target) == pin["blake3"]


def fetch_manifest(array, pin, work):
    """A copy that only this program can write, of the first file on the array that is what is sealed."""
    served = None
    for number, name in enumerate((pin["file"], "copy/" + pin["file"])):
        target = os.path.join(work, f"stored{number}")
        if copy_file(array, name, pin, target):
            served = served or target
        else:
            print(f"warning: {name}: not what the seal says", file=sys.stderr)
    require(served, "manifest: no copy is what the seal says")
    return served


def open_manifest(stored, pin, identity, work):
    path = os.path.join(work, "manifest.db")
    if pin["file"] == "manifest.db":
        os.rename(stored, path)
    else:
        with open(stored, "rb") as file:
            head = file.read(64 << 10)
            require(head.startswith(b"age-encryption.org/v1\n") and b"\n---" in head, "manifest: no age file")
            file.seek(0)
            if pin["bytes"] <= PIECE:
                plain = age(file.read(), identity, pin["plain"]["bytes"])
                require(plain is not None, "manifest: it does not open")
                with open(path, "wb") as out:
                    out.write(plain)
            else:
                with open(path, "wb") as out:
                    opener = subprocess.Popen(["age", "-d", "-i", identity], stdin=file, stdout=subprocess.PIPE)
                    left = pin["plain"]["bytes"]
                    while left and (piece := opener.stdout.read(min(PIECE, left))):
                        left -= out.write(piece)
                    more = opener.stdout.read(1)
                    opener.stdout.close()
                    require(opener.wait() == 0 and not more, "manifest: it does not open")
        with open(path, "rb") as file:
            sha = hashlib.sha256()
            while piece := file.read(PIECE):
                sha.update(piece)
        same = (os.path.getsize(path), b3_of_file(path), sha.hexdigest())
        require(same == tuple(pin["plain"][name] for name in ("bytes", "blake3", "sha256")), "manifest: decrypted, another")
    db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON"):
        db.execute(f"PRAGMA {pragma}")
    pragmas = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    require(pragmas == [0x4D474D46, 1], "manifest: another application_id or user_version")
    require(schema_of(db) == schema_of_the_page(), "manifest: another schema")
    return db


def schema_of(db):
    return sorted(map(repr, db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema LIMIT 100")))


@functools.lru_cache(1)
def schema_of_the_page():
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "..", "FORMAT.md"), encoding="utf-8") as file:
        sql = file.read().split("```sql\n")[1].split("```")[0]
    db = sqlite3.connect(":memory:")
    db.executescript(sql)
    return schema_of(db)


def is_count(value):
    return is_number(value, 1 << 63)


def is_json_text(value):
    return isinstance(value, str) and len(value.encode()) <= 1 << 20 and is_json(value)


def is_blob32(value):
    return isinstance(value, bytes) and len(value) == 32


def null_or(rule):
    return lambda value: value is None or rule(value)


TABLES = {
    "shipment": {
        "id": lambda n: n == 1,
        "uuid": is_uuid,
        "format": lambda n: n == 1,
        "block_bytes": is_block_bytes,
        "cipher": one_of("none", "aes-256-gcm"),
        "label": text(200),
        "asset_tag": text(100),
        "created_at": is_time,
    },
    "site": {"id": lambda n: n == 1, "uuid": is_uuid, "name": is_name},
    "medium": {"number": is_id, "uuid": is_uuid, "serial": text(500)},
    "machine": {"number": is_id, "uuid": is_uuid, "name": is_name, "inventory": is_json_text},
    "disk": {
        "number": is_id,
        "uuid": is_uuid,
        "machine": is_id,
        "name": is_name,
        "excluded": null_or(text(500)),
        "identity": is_json_text,
        "facts": is_json_text,
    },
    "process": {
        "number": is_id,
        "envelope": null_or(is_digest),
        "host": text(300),
        "tool": text(100),
        "started_at": is_time,
        "ended_at": null_or(is_time),
        "ending": null_or(text(2000)),
    },
    "generation": {
        "id": is_count,
        "disk": is_id,
        "number": is_id,
        "bytes": is_count,
        "consistency": one_of("consistent", "fuzzy"),
        "basis": one_of("none", "hook", "source", "asserted"),
        "point_in_time": null_or(text(300)),
        "source": text(4096),
        "started_at": is_time,
        "finished_at": is_time,
        "digest": is_blob32,
    },
    "pack": {
        "number": is_id,
        "medium": is_id,
        "file": lambda file: pack_number(file) is not None,
        "bytes": is_count,
        "records": is_count,
        "blake3": is_blob32,
        "tree": lambda value: value is None,
    },
    "event": {
        "id": is_count,
        "at": is_time,
        "kind": text(100),
        "machine": null_or(is_id),
        "disk": null_or(is_id),
        "detail": text(16000),
    },
}


def read_table(db, table):
    """All rows by key, bounded before they are kept."""
    rules, rows, size, last = TABLES[table], [], 0, None
    key = next(iter(rules))
    for values in db.execute(f"SELECT {', '.join(rules)} FROM {table} ORDER BY {key}"):
        size += sum(len(value) for value in values if isinstance(value, (str, bytes)))
        require(len(rows) < 200000 and size <= 64 << 20, f"manifest: table {table} is too large")
        row = dict(zip(rules, values))
        for name, rule in rules.items():
            require(rule(row[name]), f"manifest: table {table}: {name} of {values[0]} breaks a rule")
        require(last is None or last < values[0], f"manifest: table {table}: rows that are in no order")
        last = values[0]
        rows.append(row)
    return rows


def by(rows, *names):
    found = {tuple(row[name] for name in names): row for row in rows}
    require(len(found) == len(rows), f"manifest: {names} twice")
    return found


def unreadable_ranges(db, generation):
    ranges, end = [], 0
    rows = db.execute("SELECT offset, bytes FROM unreadable WHERE generation = ? ORDER BY offset", (generation["id"],))
    for offset, length in rows:
        sound = is_count(offset) and is_count(length) and length > 0 and end <= offset
        require(sound and offset + length <= generation["bytes"], "manifest: an unreadable range breaks a rule")
        require(len(ranges) < 200000, "manifest: too many unreadable ranges")
        end = offset + length
        ranges.append((offset, end))
    return ranges


def block_rows(db, generation, block_bytes, encrypted, packs):
    """Every row of a generation, in order and without a gap, each by the rules of the page."""
    size, expected = generation["bytes"], 0
    ranges = unreadable_ranges(db, generation)
    at = 0
    for block, digest, state, *place in db.execute(
        "SELECT block, leaf, state, pack, offset, stored, codec FROM block WHERE generation = ? ORDER BY block",
        (generation["id"],),
    ):
        where = f"manifest: row of disk {generation['disk']}, block {block}"
        require(block == expected and block * block_bytes < size, f"{where}: expected {expected}")
        require(is_blob32(digest) and state in (0, 1, 2), f"{where} breaks a rule")
        expected += 1
        start, length = block * block_bytes, min(block_bytes, size - block * block_bytes)
        while at < len(ranges) and ranges[at][1] <= start:
            at += 1
        is_lost = at < len(ranges) and ranges[at][0] < start + length
        require(is_lost == (state == 2), f"{where}: state 2 exactly where a part is unreadable")
        if place == [None] * 4:
            require(state != 1, f"{where}: no record")
            place = None
        else:
            require(state != 0 and all(is_count(value) for value in place), f"{where}: its place breaks a rule")
            number, offset, stored, codec = place
            tag = 16 if encrypted else 0
            fits = stored == length + tag if codec == 0 else codec == 1 and tag < stored < length + tag
            require(fits and offset % PAGE == 0 and offset >= PAGE, f"{where}: its place breaks a rule")
            require(number in packs and offset + record_bytes(stored) <= packs[number]["bytes"], f"{where}: beyond its pack")
        lost, next_ = [], at
        while is_lost and next_ < len(ranges) and ranges[next_][0] < start + length:
            lost.append((max(ranges[next_][0], start) - start, min(ranges[next_][1], start + length) - start))
            next_ += 1
        yield block, digest, state, place, length, lost
    require(expected == -(-size // block_bytes), f"manifest: disk {generation['disk']}: {expected} rows")


def compare_manifest(db, seal, shipment):
    """The manifest says what the seal and shipment.json say (7). Gives the generation of each sealed disk."""
    tables = {name: read_table(db, name) for name in TABLES}
    require(len(tables["shipment"]) == 1 and len(tables["site"]) == 1, "manifest: one row in shipment and in site")
    row, site = tables["shipment"][0], tables["site"][0]
    encrypted = shipment["suite"] != "plaintext"
    require(row["uuid"] == shipment["shipment"] and row["block_bytes"] == shipment["block_bytes"], "manifest: shipment")
    require((row["cipher"] != "none") == encrypted and same_time(row["created_at"], shipment["created_at"]), "manifest: shipment")
    require((row["label"], row["asset_tag"]) == (shipment["label"], shipment["asset_tag"]), "manifest: shipment")
    require({name: site[name] for name in ("uuid", "name")} == shipment["site"], "manifest: site")
    require(tables["medium"] == shipment["media"], "manifest: medium")

    packs = by(tables["pack"], "number")
    require(all(pack_number(pack["file"]) == pack["number"] for pack in tables["pack"]), "manifest: file of a pack")
    for pack in tables["pack"]:
        pack["blake3"] = pack["blake3"].hex()
    sealed = {(pack_number(pack["file"]),): pack for pack in seal["packs"]}
    same = {key: {name: pack[name] for name in ("file", "medium", "bytes", "records", "blake3")} for key, pack in packs.items()}
    require(same == sealed, "manifest: packs")

    pins = {envelope_number(file): pin for file, pin in seal["pins"].items() if file != "shipment.json"}
    envelopes = {p["number"]: p["envelope"] for p in tables["process"] if p["envelope"] is not None}
    require(envelopes == pins, "manifest: envelopes")

    machines, disks = by(tables["machine"], "number"), by(tables["disk"], "number")
    require(all((disk["machine"],) in machines for disk in tables["disk"]), "manifest: a disk of no machine")

    def name(disk):
        return machines[disk["machine"],]["name"], disk["name"]

    excluded = sorted((*name(disk), disk["excluded"]) for disk in tables["disk"] if disk["excluded"] is not None)
    require(excluded == sorted((e["machine"], e["disk"], e["reason"]) for e in seal["excluded"]), "manifest: excluded disks")

    generations = by(tables["generation"], "disk", "number")
    require(all((disk,) in disks for disk, _ in generations), "manifest: a generation of no disk")
    require(set(generations) == {(disk["id"], disk["generation"]) for disk in seal["disks"]}, "manifest: generations")
    for sealed in seal["disks"]:
        generation, disk = generations[sealed["id"], sealed["generation"]], disks[sealed["id"],]
        require((*name(disk), disk["uuid"]) == tuple(sealed[key] for key in ("machine", "disk", "uuid")), "manifest: a disk")
        same = [generation[key] for key in ("bytes", "consistency", "basis")] + [generation["digest"].hex()]
        require(same == [sealed[key] for key in ("bytes", "consistency", "basis", "digest")], "manifest: a generation")
    known = {generation["id"] for generation in tables["generation"]}
    for table in ("block", "unreadable"):
        owner = db.execute(f"SELECT generation FROM {table} ORDER BY generation LIMIT 1").fetchone()
        while owner:
            require(owner[0] in known, f"manifest: table {table}: rows of no generation")
            later = db.execute(f"SELECT generation FROM {table} WHERE generation > ? ORDER BY generation LIMIT 1", owner)
            last, owner = owner, later.fetchone()
            require(not owner or owner[0] > last[0], f"manifest: table {table}: rows that are in no order")

    places, by_number = [], {pack_number(pack["file"]): pack for pack in seal["packs"]}
    for sealed in seal["disks"]:
        generation, merger, counts = generations[sealed["id"], sealed["generation"]], Merger(), [0, 0, 0]
        for _, digest, state, place, _, _ in block_rows(db, generation, sealed["block_bytes"], encrypted, by_number):
            merger.push(digest)
            counts[state] += 1
            if place and places and places[-1][0] == place[0] and places[-1][2] == place[1]:
                # What lies together is one run.
                places[-1][2] += record_bytes(place[2])
            elif place:
                places.append([place[0], place[1], place[1] + record_bytes(place[2])])
        require(counts == [sealed["blocks"][key] for key in ("zero", "stored", "unreadable")], "manifest: counts of blocks")
        require(merger.count < 2 or merger.digest() == sealed["digest"], "manifest: leaves of another digest")
    places.sort()
    apart = all(one[0] != other[0] or one[2] <= other[1] for one, other in zip(places, places[1:]))
    require(apart, "manifest: a record within another")
    return generations


# ---- 6: packs and records --------------------------------------------------------------------------------------


def record_bytes(stored):
    return -(-(HEADER + stored) // PAGE) * PAGE


class Header:
    def __init__(self, data):
        """Damaged unless the first 128 bytes are a header by the page."""
        intact(len(data) >= HEADER, "no record header")
        magic, version, self.kind, self.codec, self.cipher = struct.unpack_from("<8sHBBB", data)
        intact(magic == b"MGRECORD" and struct.unpack_from("<I", data, 124)[0] == zlib.crc32(data[:124]), "no record header")
        reserved = data[13:16] + data[44:48] + data[68:72] + data[84:124]
        intact((version, self.kind) == (1, 1) and self.codec < 2 and self.cipher < 2 and not any(reserved), "another header")
        self.shipment = str(uuid.UUID(bytes=data[16:32]))
        self.process, self.disk, self.generation = struct.unpack_from("<III", data, 32)
        self.block, self.plain, self.packed, self.stored = struct.unpack_from("<QIII", data, 48)
        self.nonce, self.crc = struct.unpack_from("<QI", data, 72)
        agree = 1 <= self.plain <= MAX_BLOCK and self.stored == self.packed + 16 * self.cipher
        agree = agree and (self.packed == self.plain if self.codec == 0 else 1 <= self.packed < self.plain)
        intact(agree and (self.cipher or not self.nonce), "lengths that contradict each other")
        self.aad = data[:80]


def check_pack_header(page, seal, number, medium):
    intact(len(page) == PAGE and page[:8] == b"MGPACK\0\0", "no pack header")
    intact(struct.unpack_from("<I", page, 60)[0] == zlib.crc32(page[:60]), "no pack header")
    found = (struct.unpack_from("<H", page, 8)[0], str(uuid.UUID(bytes=page[16:32])), *struct.unpack_from("<II", page, 32))
    intact(found == (1, seal["shipment"], number, medium), "the header of another pack")
    intact(not any(page[10:16] + page[40:60] + page[64:]), "no pack header")


def walk_pack(array, seal, pack, encrypted, found):
    """A pack from its first page, without keys or manifest."""
    name, pinned = pack["file"], {envelope_number(file) for file in seal["pins"]}
    try:
        file, length = array.open(name)
    except FileNotFoundError:
        found.append(f"missing: {name}")
        return
    except Damaged as error:
        found.append(f"damaged: {error}")
        return

    def fault(offset, what, untrusted=False):
        found.append(f"{'untrusted' if untrusted else 'damaged'}: {name} at byte {offset}: {what}")

    with file:
        if length != pack["bytes"]:
            fault(0, f"expected {pack['bytes']} bytes, found {length}")
        end, at, records, lost = min(length, pack["bytes"]), PAGE, 0, False
        try:
            check_pack_header(file.read(PAGE), seal, pack_number(name), pack["medium"])
        except Damaged as error:
            fault(0, error)
        while at < end:
            file.seek(at)
            page = file.read(min(PAGE, end - at))
            try:
                intact(len(page) == PAGE, "the pack ends within a page")
                header = Header(page)
            except Damaged as error:
                if not lost:
                    fault(at, error)
                lost, at = True, at + PAGE
                continue
            lost, records = False, records + 1
            where = f"record of disk {header.disk}, block {header.block}"
            if header.shipment != seal["shipment"]:
                fault(at, f"{where}: of another shipment")
            if bool(header.cipher) != encrypted:
                fault(at, f"{where}: in clear in an encrypted shipment, or the reverse", untrusted=True)
            elif encrypted and header.process not in pinned:
                fault(at, f"{where}: of process {header.process}, of which no envelope is pinned")
            whole = record_bytes(header.stored)
            file.seek(at)
            record = file.read(min(whole, end - at))
            if len(record) < whole:
                fault(at, f"{where}: the pack ends within it")
            elif zlib.crc32(record[HEADER : HEADER + header.stored]) != header.crc or any(record[HEADER + header.stored :]):
                fault(at, f"{where}: payload or padding")
            at += whole
    if length == pack["bytes"]:
        if b3_of_file(os.path.join(array.root, name)) != pack["blake3"]:
            fault(0, "another digest")
        elif records != pack["records"]:
            fault(0, f"expected {pack['records']} records, found {records}")


def window_bytes(frame):
    """The window of the one Zstandard frame that `frame` is (RFC 8878, section 3.1.1); Damaged if it is anything else."""

    def byte(at):
        intact(at < len(frame), "a frame that ends within its header")
        return frame[at]

    intact(frame[:4] == b"\x28\xb5\x2f\xfd", "no Zstandard frame")
    descriptor, at = byte(4), 5
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    window = 0
    if not single:
        base = 1 << 10 + (byte(5) >> 3)
        window, at = base + base // 8 * (byte(5) & 7), 6
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    intact(not any(byte(at + i) for i in range(dictionary)), "a frame with a dictionary")
    size = (single, 2, 4, 8)[descriptor >> 6]
    content = sum(byte(at + dictionary + i) << 8 * i for i in range(size)) + (256 if size == 2 else 0)
    at += dictionary + size
    while True:
        block = byte(at) | byte(at + 1) << 8 | byte(at + 2) << 16
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
        if block & 1:
            break
    intact(at + 4 * checksum == len(frame), "not one whole frame")
    return content if single else window


@functools.lru_cache(1024)
def unpacked(frame, plain_bytes):
    intact(window_bytes(frame) <= MAX_WINDOW, "a window of more than 16 MiB")
    # Reading one byte more than expected bounds the output whatever the frame promises.
    with tempfile.TemporaryFile() as file:
        file.write(frame)
        file.seek(0)
        unpack = subprocess.Popen(["zstd", "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        plain = unpack.stdout.read(plain_bytes + 1)
        unpack.stdout.close()
        intact(unpack.wait() == 0 and len(plain) == plain_bytes, "other data than a compressed block")
    return plain


def read_record(file, seal, encrypted, want, keys):
    """The block that the row names; `want` is (disk, generation, block, plain_bytes, offset, stored, codec)."""
    disk, generation, block, plain_bytes, offset, stored, codec = want
    file.seek(offset)
    record = file.read(record_bytes(stored))
    intact(len(record) == record_bytes(stored), "the pack ends within the record")
    header = Header(record)
    named = (seal["shipment"], disk, generation, block, plain_bytes, stored, codec)
    found = (header.shipment, header.disk, header.generation, header.block, header.plain, header.stored, header.codec)
    intact(found == named, "another record than the row names")
    payload = record[HEADER : HEADER + stored]
    intact(zlib.crc32(payload) == header.crc and not any(record[HEADER + stored :]), "payload or padding damaged")
    require(bool(header.cipher) == encrypted, "in clear in an encrypted shipment, or the reverse")
    if encrypted:
        intact(header.process in keys, f"no envelope of process {header.process}")
        payload = keys[header.process].open(bytes(4) + struct.pack("<Q", header.nonce), header.aad, payload)
        intact(payload is not None, "the tag does not match")
    return unpacked(payload, plain_bytes) if codec == 1 else payload


def check_disk(array, db, seal, sealed, generation, encrypted, keys, path, found):
    """Writes the disk to `path` and proves every block of it (7). Says whether all are good."""
    size, block_bytes, bad, before = sealed["bytes"], sealed["block_bytes"], set(), len(found)
    name = f"{sealed['machine']}/{sealed['disk']}"
    packs, opened = {pack_number(pack["file"]): pack for pack in seal["packs"]}, {}

    def fault(block, what, untrusted=False):
        bad.add(block)
        found.append(f"{'untrusted' if untrusted else 'damaged'}: disk {name}, block {block}: {what}")

    with open(path, "wb+") as out:
        out.truncate(size)
        for block, _, _, place, length, _ in block_rows(db, generation, block_bytes, encrypted, packs):
            if place:
                number, offset, stored, codec = place
                try:
                    if number not in opened:
                        opened[number] = array.open(packs[number]["file"])[0]
                    want = (sealed["id"], sealed["generation"], block, length, offset, stored, codec)
                    plain = read_record(opened[number], seal, encrypted, want, keys)
                except (Damaged, FileNotFoundError) as error:
                    fault(block, error)
                    continue
                except Untrusted as error:
                    fault(block, error, untrusted=True)
                    continue
                out.seek(block * block_bytes)
                out.write(plain)
        out.flush()
        # The leaves merge to the digest: where that is the disk's, every block has its leaf. A single block has no merge.
        whole = b3_of_file(path) == sealed["digest"]
        for block, digest, _, _, length, lost in block_rows(db, generation, block_bytes, encrypted, packs):
            if block in bad:
                continue
            out.seek(block * block_bytes)
            plain = out.read(length)
            if not (whole and size > block_bytes) and leaf(plain, block * block_bytes) != digest:
                fault(block, "another leaf")
            elif any(any(plain[start:end]) for start, end in lost):
                fault(block, "bytes where the source could not be read", untrusted=True)
    for file in opened.values():
        file.close()
    if not whole and len(found) == before:
        found.append(f"untrusted: disk {name}: its leaves are right, and its digest is another")
    return len(found) == before


# ---- 8: custody ------------------------------------------------------------------------------------------------


def check_custody(array, seal, digest, trust, found):
    names = array.list("custody", 10000)
    require(len(names) <= 10000, "custody: more than 10000 names")
    form = re.compile(r"(0[0-9]{3})-(dispatched|received)\.json(\.sig)?")
    events = {name for name in names if (match := form.fullmatch(name)) and match[1] != "0000"}
    found += [f"extra: custody/{name!r}: no part of the chain" for name in names if name not in events]
    number, last = 0, None
    while events:
        number += 1
        word = "dispatched" if number % 2 else "received"
        name = f"{number:04}-{word}.json"
        if events in ({f"{number:04}-dispatched.json"}, {f"{number:04}-received.json"}):
            found.append(f"extra: custody/{events.pop()}: what a crash left of an event")
            break
        require({name, name + ".sig"} <= events, f"custody: no whole event {number}, {word}")
        events -= {name, name + ".sig"}
        require(not any(event.startswith(f"{number:04}-") for event in events), f"custody: two events {number}")
        data = array.read("custody/" + name, 128 << 10)
        signature = array.read(f"custody/{name}.sig", 64 << 10)
        event = None if data is None else parse(data, 128 << 10, EVENT)
        require(event is not None, f"custody/{name}: it breaks a rule")
        require((event["shipment"], event["seal"]) == (seal["shipment"], digest), f"custody/{name}: of another seal")
        require((event["number"], event["event"]) == (number, word), f"custody/{name}: not what its name says")
        key = key_of(data, signature, event["signer"], "motiongear-custody", trust)
        require(key is not None, f"custody/{name}.sig: no allowed signature")
        at_home = site_of(event["signer"]) == seal["site"]["name"]
        if number % 2:
            require(at_home, f"custody/{name}: dispatched by another site")
        else:
            require(not at_home and key != last["key"], f"custody/{name}: received by who dispatched")
            require(site_of(event["signer"]) != site_of(last["signer"]), f"custody/{name}: received by who dispatched")
        require(event["previous"] == (last and last["pins"]), f"custody/{name}: another predecessor")
        last = {"key": key, "signer": event["signer"], "pins": {"event": b3(data), "signature": b3(signature)}}


# ---- the whole -------------------------------------------------------------------------------------------------


def check(array, options, found):
    array, trust = Array(array), (options.trust, options.verify_time)
    digest, seal = choose_seal(array, trust)
    if options.expect_seal is not None:
        require(is_expected(options.expect_seal, digest), "seal.json: another seal than the expected one")
    shipment = pinned_shipment(array, seal, trust, found)
    encrypted, keys = shipment["suite"] != "plaintext", {}
    envelopes = {}
    for file, pin in seal["pins"].items():
        if file != "shipment.json":
            envelopes[envelope_number(file)] = array.pinned(file, pin, 16 << 10)
            if envelopes[envelope_number(file)] is None:
                found.append(f"damaged: {file}: no copy is what is pinned")
    check_custody(array, seal, digest, trust, found)
    known = {pack["file"] for pack in seal["packs"]}
    names = array.list("packs", 200000)
    if len(names) > 200000:
        found.append("damaged: packs: more than 200000 names")
    found += [f"extra: packs/{name!r}" for name in names[:200000] if "packs/" + name not in known]
    with tempfile.TemporaryDirectory() as work:
        stored = fetch_manifest(array, seal["manifest"], work)
        # Without a trust file or the keys it is not opened.
        readable = options.trust is not None and (not encrypted or options.identity is not None)
        if readable:
            for process, envelope in envelopes.items():
                if envelope is not None:
                    keys[process] = content_key(envelope, seal["shipment"], process, options.identity)
            try:
                db = open_manifest(stored, seal["manifest"], options.identity, work)
                generations = compare_manifest(db, seal, shipment)
            except sqlite3.Error as error:
                raise Untrusted(f"manifest: {error}") from error
        else:
            print("warning: the manifest was not opened", file=sys.stderr)
        for pack in seal["packs"]:
            walk_pack(array, seal, pack, encrypted, found)
        for sealed in seal["disks"] if readable else []:
            path = os.path.join(work, "disk")
            generation = generations[sealed["id"], sealed["generation"]]
            good = check_disk(array, db, seal, sealed, generation, encrypted, keys, path, found)
            for name, target in options.restore if good else []:
                if name == f"{sealed['machine']}/{sealed['disk']}":
                    # Onto another file system perhaps, and only whole under its name.
                    with open(path, "rb") as disk, open(target + ".partial", "wb") as out:
                        while piece := disk.read(PIECE):
                            out.write(piece)
                    os.rename(target + ".partial", target)


def verdict(array, options):
    found = []
    try:
        check(array, options, found)
    except Untrusted as error:
        found.append(f"untrusted: {error}")
    except NothingToCheck as error:
        print(f"{array}: {error}", file=sys.stderr)
        return 1
    for finding in found:
        print(f"{array}: {finding}", file=sys.stderr)
    return 4 if any(finding.startswith("untrusted") for finding in found) else 3 if found else 0


def main():
    parser = argparse.ArgumentParser(description="Checks MotionGear arrays, and restores a disk.")
    parser.add_argument("arrays", nargs="+", metavar="ARRAY")
    for name in ("trust", "identity", "expect-seal", "verify-time"):
        parser.add_argument("--" + name)
    parser.add_argument("--restore", nargs=2, action="append", default=[], metavar=("DISK", "FILE"))
    options = parser.parse_args()
    codes = []
    for array in options.arrays:
        codes.append(verdict(array, options))
        if len(options.arrays) > 1:
            print(codes[-1], array)
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
