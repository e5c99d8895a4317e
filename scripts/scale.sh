#!/usr/bin/env bash
# What a large tree costs: the rate of creates as it grows, the daemon's memory in walks over it, and the time to mount it.
# Exit code 0 when the bounds in docs/SEMANTICS.md are kept.
#
#   scripts/scale.sh [--files 1000000] [--distinct 1000] [DIR]
#   scripts/scale.sh --cluster [--files 1000000] [--distinct 1000] [--writers 32] [DIR]
#
# With --cluster, a tree in an etcd and a mongod of its own: creates by many writers at once on one machine, its memory, the
# size of the log and its checkpoints, and how long a second machine that is new takes to join, with what memory.
#
# --distinct says how many different contents the files have; with --cluster, 0 makes them empty.
# Works in a directory of its own below DIR [default: /var/tmp] and removes it. Needs root, to drop the kernel's caches.
# The program is $ONCEFS, else target/release/oncefs, else the one in PATH.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cluster='' parent=/var/tmp options=()
while [ $# -gt 0 ]; do
    case $1 in
    --cluster)
        cluster=1
        shift
        ;;
    --files | --distinct | --writers)
        [ $# -ge 2 ] || die "$1 needs a value"
        options+=("$1" "$2")
        shift 2
        ;;
    -h | --help)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        exit
        ;;
    -*) die "unknown option $1" ;;
    *)
        parent=$1
        shift
        ;;
    esac
done
[ "$(id -u)" = 0 ] || die "run it as root: it drops the kernel's caches"
oncefs=$(built_oncefs)
has python3 || die "python3 is missing"

work=$(mktemp -d "$parent/oncefs-scale.XXXXXX")
if [ -z "$cluster" ]; then
    trap '"$oncefs" umount "$work/mnt" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
    mkdir "$work/mnt"
    python3 "$root/scripts/scale.py" "$oncefs" "$work/mnt" "$work/data" "${options[@]}"
    exit
fi

# Three that nobody listens on, two of them next to each other.
read -r ETCD_PORT MONGO_PORT < <(python3 - <<'PYTHON'
import socket

def listener(port=0):
    s = socket.socket()
    s.bind(("127.0.0.1", port))
    return s, s.getsockname()[1]

while True:
    etcd, port = listener()
    try:
        peer, _ = listener(port + 1)
    except OSError:
        continue
    print(port, listener()[1])
    break
PYTHON
)
export ETCD_PORT MONGO_PORT

end() {
    local mount
    for mount in "$work/a" "$work/b"; do
        # After an interruption writers may have it a moment longer; then it ends with the last of them.
        mountpoint -q "$mount" || continue
        "$oncefs" umount "$mount" 2>/dev/null || sleep 1
        "$oncefs" umount "$mount" 2>/dev/null || umount -l "$mount" 2>/dev/null || true
    done
    "$root/scripts/cluster.sh" stop "$work/servers" >/dev/null || true
    rm -rf --one-file-system "$work"
}
trap end EXIT
mkdir "$work/a" "$work/b"
"$root/scripts/cluster.sh" start "$work/servers" >/dev/null
python3 -B "$root/scripts/scale_cluster.py" "$oncefs" "$work" "127.0.0.1:$MONGO_PORT" "http://127.0.0.1:$ETCD_PORT" "${options[@]}"
