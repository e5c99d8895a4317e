#!/usr/bin/env python3
"""Times the same file operations in several directories and prints them side by side. Started by bench.sh."""

import argparse
import os
import statistics
import subprocess
import sys
import time

BLOCK = 1 << 20
SMALL = 4096
# What oncefs as root aims at, as a share of the native disk.
GOALS = {"write": 0.7, "second read": 0.5, "create": 0.25}


class Bench:
    def __init__(self, args):
        self.args = args
        # Incompressible, and the same for everybody; a stamp makes each file unlike all others.
        self.noise = os.urandom(16 * BLOCK)
        self.stamps = 0
        self.cold = os.geteuid() == 0

    def stamp(self):
        self.stamps += 1
        return self.stamps.to_bytes(16, "little")

    def settle(self, name, path):
        """Everything is stored and on disk; the next operation starts on a quiet machine."""
        if name == "oncefs":
            subprocess.run([self.args.oncefs, "wait", path], check=True, stderr=subprocess.DEVNULL)
        os.sync()

    def drop_caches(self):
        if self.cold:
            with open("/proc/sys/vm/drop_caches", "w") as f:
                f.write("3")

    def fresh_start(self):
        # Not only for quiet. Memory that was never used before costs a virtual machine a fault per page, and a page
        # cache that is kept (oncefs keeps removed content for a while, a disk does not) sends the next writer there.
        os.sync()
        self.drop_caches()

    def large(self, name, directory):
        path = os.path.join(directory, "large")
        blocks = [memoryview(self.noise)[i : i + BLOCK] for i in range(0, len(self.noise), BLOCK)]
        first = self.stamp() + bytes(blocks[0][16:])
        total = self.args.bytes

        self.fresh_start()
        start = time.perf_counter()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        done = os.write(fd, first[:total])
        at = 1
        while done < total:
            done += os.write(fd, blocks[at % len(blocks)][: total - done])
            at += 1
        os.close(fd)
        yield "write", total / BLOCK / (time.perf_counter() - start)

        self.settle(name, path)
        self.drop_caches()
        buffer = bytearray(BLOCK)
        for what in "first read", "second read":
            start = time.perf_counter()
            fd = os.open(path, os.O_RDONLY)
            done = 0
            while n := os.readv(fd, [buffer]):
                done += n
            os.close(fd)
            assert done == total, f"{path}: {done} bytes of {total}"
            yield what, total / BLOCK / (time.perf_counter() - start)
        os.unlink(path)

    def small(self, name, directory):
        directory = os.path.join(directory, "small")
        os.mkdir(directory)
        count = self.args.files
        paths = [os.path.join(directory, f"{i:06}") for i in range(count)]
        contents = [self.stamp() + self.noise[16:SMALL] for _ in paths]

        def create(i):
            fd = os.open(paths[i], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, contents[i])
            os.close(fd)

        def read(i):
            fd = os.open(paths[i], os.O_RDONLY)
            data = os.read(fd, SMALL + 1)
            os.close(fd)
            assert data == contents[i], f"{paths[i]} has changed"

        operations = {
            "create": create,
            "open+read": read,
            "stat": lambda i: os.stat(paths[i]),
            "unlink": lambda i: os.unlink(paths[i]),
        }
        self.fresh_start()
        for what, operation in operations.items():
            start = time.perf_counter()
            for i in range(count):
                operation(i)
            yield what, count / (time.perf_counter() - start)
            if what == "create":
                self.settle(name, directory)
        os.rmdir(directory)

    def run(self):
        results = {}
        for round_ in range(self.args.rounds):
            # Another one goes first each time, so that nobody always meets what the one before left behind.
            targets = self.args.targets[round_ % len(self.args.targets) :] + self.args.targets[: round_ % len(self.args.targets)]
            for part in self.large, self.small:
                for name, directory in targets:
                    if sys.stderr.isatty():
                        print(f"\rround {round_ + 1} of {self.args.rounds}: {part.__name__} files, {name}\033[K", end="", file=sys.stderr)
                    for what, speed in part(name, directory):
                        results.setdefault(what, {}).setdefault(name, []).append(speed)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        return results

    def report(self, results):
        names = [name for name, _ in self.args.targets]
        others = [name for name in names if name != "native"]
        print(f"{self.args.bytes / BLOCK:g} MiB in blocks of 1 MiB; {self.args.files} files of 4 KiB; no fsync; median of {self.args.rounds} rounds, in brackets the share of native")
        if not self.cold:
            print("not root: the caches were not dropped, so `first read` is warm, and writes went through the daemon")
        print()
        print(f"{'':12}{'':9}{'native':>9}" + "".join(f"{name:>17}" for name in others) + (f"{'goal':>8}" if self.cold else ""))
        for what, speeds in results.items():
            median = {name: statistics.median(speeds[name]) for name in names}
            unit = "MiB/s" if what in ("write", "first read", "second read") else "files/s"
            line = f"{what:12}{unit:9}{median['native']:9.0f}"
            for name in others:
                line += f"{median[name]:9.0f} ({median[name] / median['native']:.2f})".rjust(17)
            if self.cold:
                line += f"{GOALS[what]:8.2f}" if what in GOALS else f"{'-':>8}"
            print(line)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--oncefs", required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--files", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("targets", nargs="+", type=lambda t: tuple(t.split("=", 1)), metavar="NAME=DIR")
    bench = Bench(parser.parse_args())
    bench.report(bench.run())


if __name__ == "__main__":
    main()
