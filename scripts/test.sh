#!/usr/bin/env bash
# Installs what the tests need and runs them. The tests start and stop their own servers and mounts.
#
#   scripts/test.sh [arguments of `cargo test`...]
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_build_tools
need getfattr:attr rsync:rsync git:git sqlite3:sqlite3 strace:strace jq:jq ip:iproute2 python3:python3
need_etcd
need_mongod
[ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true

cd "$root"
say "cargo test, with $("$ONCEFS_MONGOD" --version | head -n 1) and $(etcd --version | head -n 1)"
output=$(mktemp)
trap 'rm -f "$output"' EXIT
result=0
cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$output" || result=$?
# cargo sums up each test program; this is the sum of them.
awk '/^test result: / {
    for (i = 2; i <= NF; i++) {
        if ($i == "passed;") passed += $(i - 1)
        if ($i == "failed;") failed += $(i - 1)
        if ($i == "ignored;") ignored += $(i - 1)
    }
} END { printf "\ntests: %d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$output"
exit "$result"
