#!/usr/bin/env bash
# Speed of the native disk and of an oncefs mount on it, side by side and as ratios; gocryptfs and bindfs too, where
# they are installed.
#
#   scripts/bench.sh [--size 1G] [--files 5000] [--rounds 3] [DIR]
#
# Works in a directory of its own below DIR [default: /var/tmp] and removes it. As root the kernel's caches are dropped
# before writes and first reads, and writes go past the daemon (FUSE passthrough); else neither. Nothing is timed with fsync.
# The program is $ONCEFS, else target/release/oncefs, else the one in PATH.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

size=1G files=5000 rounds=3 parent=/var/tmp
while [ $# -gt 0 ]; do
    case $1 in
    --size | --files | --rounds)
        [ $# -ge 2 ] || die "$1 needs a value"
        declare "${1#--}=$2"
        shift 2
        ;;
    -h | --help)
        sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
        ;;
    -*) die "unknown option $1" ;;
    *)
        parent=$1
        shift
        ;;
    esac
done
bytes=$(numfmt --from=iec "$size")
oncefs=$(built_oncefs)
has python3 || die "python3 is missing"
free=$(df --output=avail -B1 "$parent" | tail -n 1)
[ "$free" -gt $((bytes * (rounds + 4))) ] ||
    die "$parent has $(numfmt --to=iec "$free") free; $(numfmt --to=iec $((bytes * (rounds + 4)))) are needed"

base=$(mktemp -d "$(realpath "$parent")/oncefs-bench.XXXXXX")
cleanup() {
    trap - EXIT INT TERM
    "$oncefs" umount "$base/oncefs" >/dev/null 2>&1 || true
    for other in gocryptfs bindfs; do
        mountpoint -q "$base/$other" 2>/dev/null && { fusermount3 -u "$base/$other" || fusermount3 -uz "$base/$other"; }
    done
    rm -rf --one-file-system "$base"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

mkdir "$base/native" "$base/oncefs"
targets=("native=$base/native" "oncefs=$base/oncefs")
"$oncefs" mount "$base/oncefs" --data-dir "$base/data" --api off
if has gocryptfs; then
    mkdir "$base/gocryptfs.cipher" "$base/gocryptfs"
    echo bench >"$base/gocryptfs.pass"
    # It would complain at each start where no syslog runs.
    if gocryptfs -q -init -scryptn 10 -passfile "$base/gocryptfs.pass" "$base/gocryptfs.cipher" &&
        gocryptfs -q -nosyslog -passfile "$base/gocryptfs.pass" "$base/gocryptfs.cipher" "$base/gocryptfs" >/dev/null 2>&1; then
        targets+=("gocryptfs=$base/gocryptfs")
    fi
fi
if has bindfs; then
    mkdir "$base/bindfs.source" "$base/bindfs"
    bindfs --no-allow-other "$base/bindfs.source" "$base/bindfs" && targets+=("bindfs=$base/bindfs")
fi

printf '%s, %s on %s, %s, %s cores, %s\n' "$("$oncefs" --version)" \
    "$(df --output=fstype "$parent" | tail -n 1)" "$(df --output=source "$parent" | tail -n 1)" \
    "Linux $(uname -r)" "$(nproc)" "$([ "$(id -u)" = 0 ] && echo root || echo "not root")"
python3 "$root/scripts/bench.py" --oncefs "$oncefs" --bytes "$bytes" --files "$files" --rounds "$rounds" "${targets[@]}"
