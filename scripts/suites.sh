#!/usr/bin/env bash
# Every suite, harder than scripts/test.sh runs it, with one summary: POSIX behaviour beside ext4, random operations and
# fsx, crashes and power cuts, damage, a large tree, and with the suite `cluster` outages and races of several machines.
#
#   scripts/suites.sh [TIMES [SUITE...]]
#
# TIMES (10) multiplies the kills, power cuts and random sequences of a usual test run. SUITE picks some of: posix embedded
# model crash integrity contract cluster scale. A name with :: picks tests of a suite, such as crash::kills.
# Exit code 0 when nothing was found.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case ${1:-} in -h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit
    ;;
esac
times=${1:-10}
[[ $times =~ ^[1-9][0-9]*$ ]] || die "TIMES must be a number, not $times"
shift || true
chosen=("$@")
[ $# -gt 0 ] || chosen=(posix embedded model crash integrity contract cluster scale)

[ "$(id -u)" = 0 ] || die "this mounts disks of its own and makes networks: run it as root"
need_for_tests
cd "$root"
export ONCEFS_TORTURE=$times ONCEFS_MODEL_CASES=$((60 * times)) ONCEFS_MATRIX=all ONCEFS_RACE_NAMES=1000
logs=$(mktemp -d)
summary=$logs/summary
found=0
for suite in "${chosen[@]}"; do
    log=$logs/${suite//:/-}
    began=$SECONDS
    if [ "$suite" = scale ]; then
        cargo build --release --locked
        result=0
        "$root/scripts/scale.sh" 2>&1 | tee "$log" || result=$?
        tests=$(grep -c ' kept$' "$log" || true)
        failed=$(grep -c ' NOT KEPT$' "$log" || true)
    else
        result=0
        filter=()
        [[ $suite != *::* ]] || filter=("${suite#*::}")
        cargo test --locked --no-fail-fast --test "${suite%%::*}" -- --nocapture --test-threads 2 "${filter[@]}" 2>&1 |
            tee "$log" || result=$?
        read -r tests failed <<<"$(awk '/^test result: / { p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")"
    fi
    [ "$result" = 0 ] || found=1
    printf '%-24s %6s %6s %8s\n' "$suite" "$tests" "$failed" "$((SECONDS - began)) s" >>"$summary"
done

printf '\n%-24s %6s %6s %8s\n' suite passed failed time
cat "$summary"
echo
cat "$logs"/* | awk '/^(test .* \.\.\. )?counted [0-9]+ / {
    sub(/^.*counted /, "")
    n = $1; sub(/^[0-9]+ /, "")
    sum[$0] += n
} END { for (what in sum) printf "%10d %s\n", sum[what], what }' | sort -k2
grep -h '^\(test .* \.\.\. \)\?\(matrix\|propagation\)' "$logs"/* | sed 's/^test .* \.\.\. //' || true
rm -rf "$logs"
[ "$found" = 0 ] || die "FOUND SOMETHING, see above"
echo "nothing found"
