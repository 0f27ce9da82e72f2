# What the suites under scripts/suite/ share: a server and a mount of their own, and cases that are counted.
# Sourced as: . lib/suite.sh MODE, with `set -euo pipefail` in force.
# shellcheck shell=bash

# shellcheck source=../lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MODE=${1:?usage: SUITE nfs|afs|direct}
BIN=${LARDER_BIN_DIR:-$TARGET/debug}
SIZE=${LARDER_TEST_SIZE:-ci}
WORK=$(mktemp -d "${LARDER_TEST_TMP:-${TMPDIR:-/tmp}}/s.XXXXXX")
# Other users must reach the mount.
chmod 755 "$WORK"
MNT=$WORK/mnt
FAILED=0

# pick QUICK CI FULL: the one for this run's size.
pick() {
    case $SIZE in
    quick) say "$1" ;;
    ci) say "$2" ;;
    full) say "$3" ;;
    *) die "LARDER_TEST_SIZE=$SIZE: not one of quick, ci, full" ;;
    esac
}

start_world() {
    "$BIN/larderd" serve --store "$WORK/store" --listen 127.0.0.1:0 --durability process --port-file "$WORK/address" \
        >"$WORK/larderd.log" 2>&1 &
    say $! >"$WORK/larderd.pid"
    has_address() { [ -s "$WORK/address" ]; }
    wait_for 30 has_address || die "the server does not start: $(tail -5 "$WORK/larderd.log")"
    mkdir "$MNT"
    # As a user does it: the command returns when the mount answers.
    local options=()
    [ "$MODE" != afs ] || options=(--cache "$WORK/cache")
    timeout 60 "$BIN/larder" mount --mode "$MODE" "${options[@]}" "$(head -n1 "$WORK/address")" "$MNT" >"$WORK/client.log" 2>&1 ||
        die "mounting fails: $(cat "$WORK/client.log")"
    is_mounted "$MNT" || die "larder mount came back, but nothing is mounted at $MNT"
}

# Unmounts, ends the server, and has the store checked.
end_world() {
    cd /
    timeout 60 "$BIN/larder" umount "$MNT"
    end_process "$(cat "$WORK/larderd.pid")" "$BIN/larderd"
    "$BIN/larderd" check --store "$WORK/store"
}

clean_up() {
    local status=$?
    trap - EXIT
    cd /
    if is_mounted "$MNT"; then
        timeout 30 "$BIN/larder" umount --force "$MNT" >/dev/null 2>&1 || umount -l "$MNT" || true
    fi
    if [ -s "$WORK/larderd.pid" ]; then
        end_process "$(cat "$WORK/larderd.pid")" "$BIN/larderd" || warn "the server of $WORK does not end"
    fi
    rm -rf --one-file-system "$WORK"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# check NAME COMMAND...: runs a case in a shell of its own, and shows its output only if it fails.
check() {
    local name=$1 status start=$SECONDS
    shift
    set +e
    (
        set -euo pipefail
        "$@"
    ) >"$WORK/case.log" 2>&1 </dev/null
    status=$?
    set -e
    if [ $status = 0 ]; then
        say "ok - $MODE $name ($((SECONDS - start)) s)"
    else
        FAILED=$((FAILED + 1))
        say "not ok - $MODE $name (exit $status)"
        tail -40 "$WORK/case.log" | sed 's/^/    /'
    fi
}

# same A B: fails and shows both if they differ.
same() {
    [ "$1" = "$2" ] && return 0
    say "expected: $2"
    say "found:    $1"
    return 1
}

# finish: the suite's end and exit code.
finish() {
    check 'unmount, end and check of the store' end_world
    [ "$FAILED" = 0 ]
}
