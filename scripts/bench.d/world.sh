# The server and the mounts that scripts/bench measures, and the end of everything it started.
# shellcheck shell=bash

BIN=$TARGET/release
# shellcheck disable=SC2034  # used by scripts/bench
PROBE=$BIN/probe
WORK='' SERVER='' CLIENT='' ADDRESS=''
# Processes to end: their ids and the programs they run, in two lists that go together.
PIDS=() PROGRAMS=()
# The client of each mount point.
declare -A CLIENTS=()

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
    # What was begun is to be cleaned up to the end.
    trap "" INT TERM
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

# mount_larder MODE DIR: in the foreground of a process that is ours, so that its memory can be read. A disk cache is
# the mount's own, and empty at first. Those of earlier mounts stay to the end (see unpack).
mount_larder() {
    local options=(--mode "$1")
    mkdir -p "$2"
    if [ "$1" = afs ]; then
        options+=(--cache "$(mktemp -d "$2.cache.XXXXXX")")
    fi
    "$BIN/larder" mount --foreground "${options[@]}" "$ADDRESS" "$2" >"$WORK/client.log" 2>&1 &
    CLIENT=$!
    CLIENTS[$2]=$CLIENT
    to_be_ended "$CLIENT" "$BIN/larder"
    wait_for 30 is_mounted "$2" || die "mounting fails"
}

# unmount_larder DIR: and waits for the client's end.
unmount_larder() {
    "$BIN/larder" umount "$1"
    wait_for 30 gone "${CLIENTS[$1]}" || die "the client of $1 does not end"
}
