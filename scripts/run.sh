#!/usr/bin/env bash
# Installs what is missing, builds, and mounts. On this machine alone unless --mongodb and --etcd are given.
#
#   scripts/run.sh [MOUNTPOINT] [options of `oncefs mount`...]
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ "$(id -u)" = 0 ]; then
    mountpoint=/mnt/oncefs bin=/usr/local/bin
else
    mountpoint=$HOME/oncefs bin=$HOME/.local/bin
fi
case ${1:-} in
-h | --help)
    sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
"" | -*) ;;
*)
    mountpoint=$(realpath -ms -- "$1")
    shift
    ;;
esac

mounted() { findmnt -rn -t fuse.oncefs --mountpoint "$mountpoint" >/dev/null; }

# Not plain stat: the kernel remembers that of a dead mount for a while.
if mounted && stat -f "$mountpoint" >/dev/null 2>&1; then
    say "oncefs is mounted at $mountpoint already; \`oncefs umount $mountpoint\` ends it"
    exit
fi

need_build_tools
cd "$root"
say "building"
cargo build --release --locked
built=${CARGO_TARGET_DIR:-target}/release/oncefs
if ! cmp -s "$built" "$bin/oncefs"; then
    say "installing $bin/oncefs"
    mkdir -p "$bin"
    install -m 755 "$built" "$bin/oncefs"
fi

# For mount -t fuse.oncefs and /etc/fstab.
helper=/sbin/mount.fuse.oncefs
if [ "$(id -u)" = 0 ] && [ "$(readlink "$helper")" != "$bin/oncefs" ]; then
    say "installing $helper"
    ln -sfn "$bin/oncefs" "$helper"
fi

[ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
# Where a killed daemon left its mount the directory cannot be looked at; mounting clears that.
mounted || mkdir -p "$mountpoint"
"$bin/oncefs" mount "$mountpoint" "$@"

command="oncefs"
case :$PATH: in *:"$bin":*) ;; *) command=$bin/oncefs ;; esac
say "mounted at $mountpoint. Try:"
cat <<TEXT
    cp -r /usr/share/doc/bash $mountpoint/one
    cp -r /usr/share/doc/bash $mountpoint/two     # the same content: takes no further space
    $command wait $mountpoint                # returns when everything is stored
    $command status $mountpoint/two/copyright
    $command umount $mountpoint              # scripts/run.sh mounts it again, with everything in it
TEXT
