#!/usr/bin/env bash
# What a large tree costs: the rate of creates as it grows, the daemon's memory in walks over it, and the time to mount it.
# Exit code 0 when the bounds in docs/SEMANTICS.md are kept.
#
#   scripts/scale.sh [--files 1000000] [DIR]
#
# Works in a directory of its own below DIR [default: /var/tmp] and removes it. Needs root, to drop the kernel's caches.
# The program is $ONCEFS, else target/release/oncefs, else the one in PATH.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

files=1000000 parent=/var/tmp
while [ $# -gt 0 ]; do
    case $1 in
    --files)
        [ $# -ge 2 ] || die "$1 needs a value"
        files=$2
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
[ "$(id -u)" = 0 ] || die "run it as root: it drops the kernel's caches"
oncefs=$(built_oncefs)
has python3 || die "python3 is missing"

work=$(mktemp -d "$parent/oncefs-scale.XXXXXX")
trap '"$oncefs" umount "$work/mnt" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
mkdir "$work/mnt"
python3 "$root/scripts/scale.py" "$oncefs" "$work/mnt" "$work/data" --files "$files"
