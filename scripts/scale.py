"""What a large tree costs: creates, walks, memory, mounting. See scale.sh."""

import argparse
import os
import subprocess
import sys
import time

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
PER_DIRECTORY = 1000


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * PAGE


def peak_bytes(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))


def reset_peak(pid):
    with open(f"/proc/{pid}/clear_refs", "w") as f:
        f.write("5")


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Daemon:
    def __init__(self, binary, mountpoint, data, options=()):
        self.binary, self.mountpoint, self.data, self.options = binary, mountpoint, data, options

    def mount(self):
        start = time.monotonic()
        subprocess.run(
            [self.binary, "mount", self.mountpoint, "--data-dir", self.data, "--api", "off", *self.options],
            check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - start
        with open(f"{self.data}/lock") as f:
            self.pid = int(f.readline())
        return took

    def umount(self):
        subprocess.run([self.binary, "umount", self.mountpoint], check=True)


def create(daemon, files, distinct):
    """Creates the files with a little content each; the creates per second of each tenth."""
    tenth = max(files // 10, 1)
    rates = []
    start, cpu = time.monotonic(), cpu_seconds(daemon.pid)
    for n in range(files):
        directory = f"{daemon.mountpoint}/{n // PER_DIRECTORY // 100:03}/{n // PER_DIRECTORY:06}"
        if n % PER_DIRECTORY == 0:
            os.makedirs(directory)
        with open(f"{directory}/{n:08}", "wb", buffering=0) as f:
            f.write(b"content %d\n" % (n % distinct))
        if (n + 1) % tenth == 0:
            took, spent = time.monotonic() - start, cpu_seconds(daemon.pid) - cpu
            rates.append(tenth / took)
            print(f"  {n + 1:>9} files: {rates[-1]:7.0f} creates/s, the daemon {1e6 * spent / tenth:4.0f} us of CPU each, "
                  f"resident {resident_bytes(daemon.pid) >> 20} MiB", flush=True)
            start, cpu = time.monotonic(), cpu_seconds(daemon.pid)
    return rates


def walk(daemon, name, command):
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("2")
    reset_peak(daemon.pid)
    start = time.monotonic()
    with open(os.devnull, "w") as nowhere:
        subprocess.run(command, check=True, stdout=nowhere)
    took = time.monotonic() - start
    print(f"  {name}: {took:.1f} s, resident at most {peak_bytes(daemon.pid) >> 20} MiB", flush=True)
    return peak_bytes(daemon.pid)


def judge(bounds):
    """Prints which bounds are kept; whether all are."""
    kept = True
    for name, value, relation, bound in bounds:
        good = value >= bound if relation == ">=" else value <= bound
        kept &= good
        print(f"{name}: {value:.2f} (bound {relation} {bound}) {'kept' if good else 'NOT KEPT'}")
    return kept


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("mountpoint")
    parser.add_argument("data")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--distinct", type=int, default=1000, help="different contents")
    args = parser.parse_args()
    daemon = Daemon(args.binary, args.mountpoint, args.data)
    print(f"mounted empty in {daemon.mount():.2f} s")
    rates = create(daemon, args.files, args.distinct)
    start = time.monotonic()
    subprocess.run([args.binary, "wait", args.mountpoint], check=True)
    print(f"  stored {time.monotonic() - start:.1f} s after the last close, resident "
          f"{resident_bytes(daemon.pid) >> 20} MiB, peak {peak_bytes(daemon.pid) >> 20} MiB")
    daemon.umount()
    mounted = daemon.mount()
    print(f"mounted again in {mounted:.2f} s, resident {resident_bytes(daemon.pid) >> 20} MiB")
    peaks = [
        walk(daemon, "find", ["find", args.mountpoint]),
        walk(daemon, "ls -lR", ["ls", "-lR", args.mountpoint]),
        walk(daemon, "du", ["du", "-s", args.mountpoint]),
    ]
    daemon.umount()
    kept = judge([
        ("creates per second, last tenth / first tenth", rates[-1] / rates[0], ">=", 0.8),
        ("resident memory of a walk, MiB", max(peaks) / (1 << 20), "<=", 150),
        ("mounting the tree, s", mounted, "<=", 1),
    ])
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
