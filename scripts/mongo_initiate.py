#!/usr/bin/env python3
"""Makes a replica set of the one mongod at HOST:PORT and waits until it is primary.

Speaks MongoDB's wire protocol by itself (OP_MSG, and as much BSON as two commands need), so that neither mongosh nor a
driver has to be installed.

    mongo_initiate.py HOST:PORT [SET]
"""

import socket
import struct
import sys
import time

DEADLINE = 60
ALREADY_INITIALIZED = 23


def encode(document):
    out = b""
    for name, value in document.items():
        key = name.encode() + b"\0"
        if isinstance(value, str):
            text = value.encode() + b"\0"
            out += b"\x02" + key + struct.pack("<i", len(text)) + text
        elif isinstance(value, int):
            out += b"\x10" + key + struct.pack("<i", value)
        elif isinstance(value, dict):
            out += b"\x03" + key + encode(value)
        elif isinstance(value, list):
            out += b"\x04" + key + encode({str(i): v for i, v in enumerate(value)})
        else:
            raise TypeError(name)
    return struct.pack("<i", len(out) + 5) + out + b"\0"


# Sizes of the values that are only skipped: binary (plus its length), object id, dates and numbers.
FIXED = {0x06: 0, 0x07: 12, 0x09: 8, 0x0A: 0, 0x11: 8, 0x13: 16}


def decode(data):
    document, at = {}, 4
    while data[at]:
        kind, end = data[at], data.index(b"\0", at + 1)
        name, at = data[at + 1 : end].decode(), end + 1
        if kind == 0x01:
            (value,), size = struct.unpack_from("<d", data, at), 8
        elif kind == 0x02:
            size = 4 + struct.unpack_from("<i", data, at)[0]
            value = data[at + 4 : at + size - 1].decode()
        elif kind in (0x03, 0x04):
            size = struct.unpack_from("<i", data, at)[0]
            value = decode(data[at : at + size])
        elif kind == 0x05:
            size, value = 5 + struct.unpack_from("<i", data, at)[0], None
        elif kind == 0x08:
            value, size = bool(data[at]), 1
        elif kind == 0x10:
            (value,), size = struct.unpack_from("<i", data, at), 4
        elif kind == 0x12:
            (value,), size = struct.unpack_from("<q", data, at), 8
        elif kind in FIXED:
            value, size = None, FIXED[kind]
        else:
            raise ValueError(f"BSON type {kind:#x} of {name}")
        document[name], at = value, at + size
    return document


def command(address, body, database="admin"):
    """Sends `body` to a database and returns the answer."""
    section = encode({**body, "$db": database})
    with socket.create_connection(address, timeout=10) as connection:
        # Length, request id, answer to, OP_MSG; no flags; one section of kind 0.
        connection.sendall(struct.pack("<iiiiIB", 21 + len(section), 1, 0, 2013, 0, 0) + section)
        with connection.makefile("rb") as answer:
            size, _, _, _, _, _ = struct.unpack("<iiiiIB", answer.read(21))
            return decode(answer.read(size - 21))


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    host, _, port = sys.argv[1].rpartition(":")
    name = sys.argv[2] if len(sys.argv) == 3 else "rs0"
    address = (host, int(port))
    initiate = {"replSetInitiate": {"_id": name, "members": [{"_id": 0, "host": sys.argv[1]}]}}
    deadline = time.monotonic() + DEADLINE
    initiated, why = False, "no answer"
    while time.monotonic() < deadline:
        try:
            if not initiated:
                answer = command(address, initiate)
                initiated = answer["ok"] == 1 or answer.get("code") == ALREADY_INITIALIZED
                why = answer.get("errmsg", "not primary yet")
            elif command(address, {"hello": 1}).get("isWritablePrimary"):
                return
        except (OSError, struct.error) as e:
            why = e
        time.sleep(0.2)
    sys.exit(f"mongod at {sys.argv[1]} did not become primary: {why}")


if __name__ == "__main__":
    main()
