"""What a large tree costs a cluster: creates by many writers, memory, the log, a machine that joins. See scale.sh."""

import argparse
import multiprocessing
import os
import subprocess
import sys
import time

import mongo_initiate
from scale import PER_DIRECTORY, Daemon, cpu_seconds, judge, peak_bytes, resident_bytes

MIB = 1 << 20
DATABASE = "oncefs"
# What a file may take in memory while it waits to be stored.
WAITING_BYTES = 768
# How long the joining machine may take to have everything.
PATIENCE = 600


def write_files(mountpoint, writer, files, distinct, done):
    """One writer: files in directories of its own, since the kernel makes one name at a time in each."""
    for n in range(files):
        directory = f"{mountpoint}/{writer:03}/{n // PER_DIRECTORY:06}"
        if n % PER_DIRECTORY == 0:
            os.makedirs(directory)
        with open(f"{directory}/{n:08}", "wb", buffering=0) as f:
            if distinct:
                f.write(b"content %d\n" % ((writer * files + n) % distinct))
        done[writer] = n + 1


def waiting(daemon):
    """How many closed files wait to be stored."""
    return len(os.listdir(f"{daemon.data}/spool"))


def create(daemon, files, writers, distinct):
    """Creates the files; the creates per second of each tenth, and how many waited to be stored at the most."""
    done = multiprocessing.Array("Q", writers, lock=False)
    shares = [files // writers + (w < files % writers) for w in range(writers)]
    processes = [
        multiprocessing.Process(target=write_files, args=(daemon.mountpoint, w, share, distinct, done))
        for w, share in enumerate(shares)
    ]
    for process in processes:
        process.start()
    rates, waited, tenth = [], 0, max(files // 10, 1)
    start, cpu, before = time.monotonic(), cpu_seconds(daemon.pid), 0
    while before < files and not any(p.exitcode for p in processes):
        time.sleep(0.05)
        made = sum(done)
        if made - before >= tenth or made == files:
            took, spent = time.monotonic() - start, cpu_seconds(daemon.pid) - cpu
            rates.append((made - before) / took)
            waits = waiting(daemon)
            waited = max(waited, waits)
            print(f"  {made:>9} files: {rates[-1]:7.0f} creates/s, the daemon {1e6 * spent / (made - before):4.0f} us of CPU "
                  f"each, resident {resident_bytes(daemon.pid) // MIB} MiB, {waits} wait to be stored", flush=True)
            start, cpu, before = time.monotonic(), cpu_seconds(daemon.pid), made
    for process in processes:
        process.join()
    if any(p.exitcode for p in processes):
        sys.exit("a writer failed")
    # What is left over after the last whole tenth is too little to tell.
    return rates[:10], waited


def names(mountpoint):
    """How many files and directories `find` sees."""
    with subprocess.Popen(["find", mountpoint], stdout=subprocess.PIPE) as find:
        count = sum(chunk.count(b"\n") for chunk in iter(lambda: find.stdout.read(MIB), b""))
    return count if find.returncode == 0 else -1


class Server:
    """The MongoDB server, asked as any program could."""

    def __init__(self, address):
        host, _, port = address.rpartition(":")
        self.address = (host, int(port))

    def ask(self, body):
        answer = mongo_initiate.command(self.address, body, DATABASE)
        if answer["ok"] != 1:
            sys.exit(f"{body}: {answer.get('errmsg')}")
        return answer

    def collection(self, name):
        """How many documents it holds, and their bytes."""
        stats = self.ask({"collStats": name})
        return int(stats["count"]), int(stats["size"])

    def checkpoints(self):
        """The bytes of each checkpoint."""
        batch = self.ask({"find": "checkpoints.files", "filter": {}})["cursor"]["firstBatch"]
        return [int(file["length"]) for file in batch.values()]


def join(daemon, wanted):
    """A machine with an empty data directory: the seconds until it is mounted, and until it sees everything."""
    mounted = daemon.mount()
    print(f"another machine, new: mounted in {mounted:.2f} s, resident {resident_bytes(daemon.pid) // MIB} MiB, at most "
          f"{peak_bytes(daemon.pid) // MIB} MiB", flush=True)
    start = time.monotonic()
    while (seen := names(daemon.mountpoint)) != wanted:
        if time.monotonic() - start > PATIENCE:
            sys.exit(f"it sees {seen} names instead of {wanted}")
        time.sleep(0.1)
    complete = mounted + time.monotonic() - start
    print(f"  sees all {wanted} names {complete:.1f} s after its start (find alone takes some), resident at most "
          f"{peak_bytes(daemon.pid) // MIB} MiB", flush=True)
    return mounted, complete


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("work", help="a directory for two mounts and their data")
    parser.add_argument("mongodb", help="HOST:PORT of a replica set rs0")
    parser.add_argument("etcd", help="its endpoint")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--distinct", type=int, default=1000, help="different contents; 0: the files are empty")
    args = parser.parse_args()
    server = Server(args.mongodb)
    options = ["--mongodb", f"mongodb://{args.mongodb}/?replicaSet=rs0", "--etcd", args.etcd, "--database", DATABASE]
    a, b = (Daemon(args.binary, f"{args.work}/{n}", f"{args.work}/{n}.data", options) for n in "ab")
    mounted = []
    try:
        print(f"mounted empty in {a.mount():.2f} s")
        mounted.append(a)
        rates, waited = create(a, args.files, args.writers, args.distinct)
        start = time.monotonic()
        subprocess.run([args.binary, "wait", a.mountpoint], check=True)
        print(f"  stored {time.monotonic() - start:.1f} s after the last close, resident {resident_bytes(a.pid) // MIB} MiB, "
              f"peak {peak_bytes(a.pid) // MIB} MiB", flush=True)
        entries, log_bytes = server.collection("log")
        checkpoints = server.checkpoints()
        print(f"the log: {entries} entries, {log_bytes / MIB:.1f} MiB; checkpoints: "
              f"{', '.join(f'{c / MIB:.1f} MiB' for c in checkpoints) or 'none'}", flush=True)
        wanted = names(a.mountpoint)
        mounted.append(b)
        joined, complete = join(b, wanted)
        kept = judge([
            ("creates per second, last tenth / first tenth", rates[-1] / rates[0], ">=", 0.7),
            # What waits to be stored has an entry in memory.
            ("resident memory of the machine that writes, MiB", peak_bytes(a.pid) / MIB, "<=",
             150 + waited * WAITING_BYTES // MIB),
            ("resident memory of the machine that joins, MiB", peak_bytes(b.pid) / MIB, "<=", 150),
            ("joining, until it is mounted, s", joined, "<=", 60),
            ("joining, until it has seen every name, s", complete, "<=", 180),
        ])
    finally:
        for daemon in mounted:
            if os.path.ismount(daemon.mountpoint):
                daemon.umount()
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
