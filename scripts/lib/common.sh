# Helpers that every script uses. Sourced with `set -euo pipefail` in force.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Where cargo puts what it builds.
# shellcheck disable=SC2034  # used by those who source this
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
# rustup's directory is not in the PATH of every shell.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
    warn "${0##*/}: $*"
    exit 1
}

# Runs a command as root.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root: $*. Run it as root and try again."
    fi
}

# packages PROGRAM=PACKAGE...: installs the packages of the programs (or files, with a leading /) that are missing.
packages() {
    local pair missing=()
    for pair in "$@"; do
        case $pair in
        /*) [ -e "${pair%%=*}" ] || missing+=("${pair#*=}") ;;
        *) command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "missing: ${missing[*]}. This is not a Debian system: install them by its own means and try again."
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        die "missing: ${missing[*]}, and installing them needs root. As root: apt-get install ${missing[*]}"
    say "Installing ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { as_root env DEBIAN_FRONTEND=noninteractive apt-get update &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
        >"$log" 2>&1; then
        tail -20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install ${missing[*]}."
    fi
    rm -f "$log"
}

# What it takes to build everything.
need_cargo() {
    command -v cargo >/dev/null || die "cargo is missing. Install Rust from https://rustup.rs
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
and try again."
    packages cc=gcc protoc=protobuf-compiler
}

# need_tools PROGRAM...: installs programs that are crates of the same name, where they are missing.
need_tools() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null && continue
        say "Installing $tool"
        cargo install --quiet --locked "$tool" || die "cargo could not install $tool."
        command -v "$tool" >/dev/null ||
            die "cargo installed $tool where this shell does not find it: add ${CARGO_HOME:-$HOME/.cargo}/bin to PATH."
    done
}

need_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die "/dev/fuse is missing: this kernel, or this container, has no FUSE, so nothing can be
mounted. Load the module (modprobe fuse), or give the container the device and the right to mount
(docker run --device /dev/fuse --cap-add SYS_ADMIN)."
}

# build_failpoints PROFILE: binaries that can be told where to die, beside those that everybody else uses.
build_failpoints() {
    local dir=$TARGET/release name
    [ "$1" = release ] || dir=$TARGET/debug
    cargo build --quiet --profile "$1" --workspace --bins --features failpoints
    for name in larder larderd; do cp "$dir/$name" "$dir/$name-failpoints"; done
    cargo build --quiet --profile "$1" --workspace --bins
}

# is_ours PID BINARY: whether this process runs our binary of that name; a rebuilt binary's old processes count.
is_ours() {
    local exe
    exe=$(readlink "/proc/$1/exe" 2>/dev/null) || return 1
    [ "${exe% (deleted)}" = "$2" ]
}

# is_mounted DIR: whether a FUSE file system is mounted there. Reads the table, so that a dead mount does not block.
is_mounted() {
    local dir=$1 point type
    # The kernel writes blanks in the table as octal.
    dir=${dir// /\\040}
    while read -r _ point type _; do
        if [ "$point" = "$dir" ] && [[ $type == fuse* ]]; then return 0; fi
    done </proc/self/mounts
    return 1
}

# wait_for SECONDS COMMAND...: tries the command until it succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# end_process PID BINARY: ends it if it is ours, at first gently. Fails if it stays.
end_process() {
    is_ours "$1" "$2" || return 0
    kill -TERM "$1" 2>/dev/null || return 0
    wait_for 20 gone "$1" && return 0
    is_ours "$1" "$2" || return 0
    kill -KILL "$1" 2>/dev/null || return 0
    wait_for 10 gone "$1"
}
