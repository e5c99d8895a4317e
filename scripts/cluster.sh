#!/usr/bin/env bash
# A local etcd and mongod (a replica set of one) to try a cluster by hand, on loopback ports.
#
#   scripts/cluster.sh start|stop|status [DIR]
#   scripts/cluster.sh prove [SECONDS]
#
# `prove` needs no cluster: as root it runs every outage, race and kill of the tests with servers and networks of their own,
# and shows one table. SECONDS (600) is for how long both stores are away from a node that writes until its disk is full.
#
# DIR holds their data, logs and process ids [default: ${TMPDIR:-/tmp}/oncefs-cluster]. `stop` keeps it, so that the next
# `start` finds everything again. Other ports: ETCD_PORT (and the next one), MONGO_PORT.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dir=$(realpath -m -- "${2:-${TMPDIR:-/tmp}/oncefs-cluster}")
etcd_port=${ETCD_PORT:-22379}
mongo_port=${MONGO_PORT:-37017}
etcd=http://127.0.0.1:$etcd_port
etcd_peer=http://127.0.0.1:$((etcd_port + 1))
mongodb="mongodb://127.0.0.1:$mongo_port/?replicaSet=rs0"

# running NAME: prints the process id if it is ours. A number alone may belong to anybody after a reboot.
running() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ -n "$pid" ] &&
        tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF -- "$dir/$1" && echo "$pid"
}

# launch NAME COMMAND...: in a session of its own, so that closing the terminal does not end it.
launch() {
    local name=$1
    shift
    if running "$name" >/dev/null; then
        say "$name runs already"
        return
    fi
    mkdir -p "$dir/$name"
    chmod 700 "$dir/$name"
    setsid "$@" </dev/null >>"$dir/$name.log" 2>&1 &
    echo $! >"$dir/$name.pid"
}

# ready NAME COMMAND...: waits until COMMAND succeeds, and shows the end of the log if that does not come.
ready() {
    local name=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        if ! running "$name" >/dev/null || [ $SECONDS -ge $deadline ]; then
            tail -n 5 "$dir/$name.log" >&2
            die "$name did not start; its whole log is $dir/$name.log"
        fi
        sleep 0.2
    done
    say "$name is ready"
}

start() {
    need curl:curl python3:python3
    need_etcd
    need_mongod
    mkdir -p "$dir"
    [ -O "$dir" ] || die "$dir belongs to somebody else; name another directory"
    chmod 700 "$dir"
    launch etcd etcd --data-dir "$dir/etcd" \
        --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
        --listen-peer-urls "$etcd_peer" --initial-advertise-peer-urls "$etcd_peer" \
        --initial-cluster "default=$etcd_peer" --log-level warn \
        --auto-compaction-mode revision --auto-compaction-retention 100000
    launch mongod "$ONCEFS_MONGOD" --dbpath "$dir/mongod" --port "$mongo_port" --bind_ip 127.0.0.1 \
        --replSet rs0 --nounixsocket --wiredTigerCacheSizeGB 0.25 --quiet
    ready etcd curl -sf "$etcd/health"
    ready mongod python3 "$root/scripts/mongo_initiate.py" "127.0.0.1:$mongo_port" rs0
    local oncefs=oncefs
    if ! has oncefs; then
        oncefs=${CARGO_TARGET_DIR:-$root/target}/release/oncefs
        [ -x "$oncefs" ] || say "the program is not built yet: cargo build --release"
    fi
    cat <<TEXT

Two mounts of one tree, as if on two machines:

    mkdir -p $dir/a $dir/b
    $oncefs mount $dir/a --data-dir $dir/a.data --api 127.0.0.1:8081 \\
        --mongodb '$mongodb' --etcd $etcd
    $oncefs mount $dir/b --data-dir $dir/b.data --api 127.0.0.1:8082 \\
        --mongodb '$mongodb' --etcd $etcd

    echo hello > $dir/a/hello && cat $dir/b/hello

Then $oncefs umount $dir/a; $oncefs umount $dir/b; ${BASH_SOURCE[0]} stop${2:+ $dir}
TEXT
}

stop() {
    local name pid
    for name in etcd mongod; do
        if ! pid=$(running "$name"); then
            say "$name does not run"
            continue
        fi
        kill "$pid"
        for _ in $(seq 150); do
            running "$name" >/dev/null || break
            sleep 0.1
        done
        if running "$name" >/dev/null; then
            say "$name does not end by itself: killed"
            kill -9 "$pid"
        fi
        rm -f "$dir/$name.pid"
        say "$name stopped"
    done
    [ ! -d "$dir" ] || say "what they stored is still in $dir"
}

status() {
    local name pid up=0
    for name in etcd mongod; do
        if pid=$(running "$name"); then
            say "$name runs as process $pid; log: $dir/$name.log"
            up=$((up + 1))
        else
            say "$name does not run"
        fi
    done
    [ $up = 2 ]
}

prove() {
    local log result=0
    [ "$(id -u)" = 0 ] || die "this mounts disks of its own and makes networks: run it as root"
    need_for_tests
    cd "$root"
    log=$(mktemp)
    ONCEFS_MATRIX=all ONCEFS_RACE_NAMES=1000 ONCEFS_STORES=${ONCEFS_STORES:-20000} ONCEFS_AWAY_SECS=${2:-600} \
        cargo test --locked --no-fail-fast --test cluster -- --nocapture --test-threads 1 2>&1 | tee "$log" || result=$?
    echo
    # A line of a test begins with the test's name when it is its first.
    sed 's/^test .* \.\.\. //' "$log" | grep -E '^(matrix|propagation|exactly-once|small disk|counted)' || true
    rm -f "$log"
    [ "$result" = 0 ] || die "FOUND SOMETHING, see above"
    say "nothing found"
}

case ${1:-} in
prove) prove "$@" ;;
start) start "$@" ;;
stop) stop ;;
status) status ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
