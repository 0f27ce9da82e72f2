# The server and the mounts that scripts/bench measures, and the end of everything it started.
# shellcheck shell=bash

BIN=$TARGET/release
# shellcheck disable=SC2034  # used by scripts/bench
PROBE=$BIN/probe
WORK='' SERVER='' CLIENT='' ADDRESS=''
# Processes to end: their ids and the programs they run, in two lists that go together.
PIDS=() PROGRAMS=()

open_world() {
    WORK=$(mktemp -d "${BENCH_DIR:-${TMPDIR:-/tmp}}/larder-bench.XXXXXX")
    mkdir "$WORK/figures"
    : >"$WORK/table"
    : >"$WORK/rows"
    trap close_world EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

close_world() {
    local status=$? i point
    trap - EXIT
    while read -r _ point _; do
        case $point in "$WORK"/*) umount "$point" 2>/dev/null || umount -l "$point" || true ;; esac
    done < <(tac /proc/self/mounts)
    for ((i = ${#PIDS[@]} - 1; i >= 0; i--)); do
        end_process "${PIDS[i]}" "${PROGRAMS[i]}" || warn "process ${PIDS[i]} does not end"
    done
    if [ "$status" != 0 ]; then
        for log in "$WORK"/*.log; do [ -s "$log" ] && warn "$log:" && tail -5 "$log" >&2; done
    fi
    rm -rf --one-file-system "$WORK"
    exit "$status"
}

# to_be_ended PID PROGRAM
to_be_ended() {
    PIDS+=("$1")
    PROGRAMS+=("$(readlink -f "$2")")
}

# start_server STORE DURABILITY
start_server() {
    rm -f "$WORK/address"
    "$BIN/larderd" serve --store "$1" --listen 127.0.0.1:0 --durability "$2" --port-file "$WORK/address" \
        >"$WORK/larderd.log" 2>&1 &
    SERVER=$!
    to_be_ended "$SERVER" "$BIN/larderd"
    has_address() { [ -s "$WORK/address" ] || gone "$SERVER"; }
    wait_for 30 has_address || true
    [ -s "$WORK/address" ] || die "the server does not start"
    ADDRESS=$(head -n1 "$WORK/address")
}

end_server() { end_process "$SERVER" "$BIN/larderd"; }

# mount_larder MODE DIR: in the foreground of a process that is ours, so that its memory can be read.
mount_larder() {
    mkdir -p "$2"
    "$BIN/larder" mount --foreground --mode "$1" "$ADDRESS" "$2" >"$WORK/client.log" 2>&1 &
    CLIENT=$!
    to_be_ended "$CLIENT" "$BIN/larder"
    wait_for 30 is_mounted "$2" || die "mounting fails"
}

unmount_larder() { "$BIN/larder" umount "$1"; }
