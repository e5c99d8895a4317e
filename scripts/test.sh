#!/usr/bin/env bash
# Installs what the tests need and runs them. The tests start and stop their own servers and mounts.
#
#   scripts/test.sh [arguments of `cargo test`...]
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_for_tests

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
