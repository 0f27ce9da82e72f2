# The server and the mounts that scripts/start keeps, and what it remembers of them in $STATE.
# shellcheck shell=bash

STATE=${LARDER_STATE:-$ROOT/.larder}
# Binaries that are there already if LARDER_BIN_DIR is set, else those that scripts/start builds.
BIN=${LARDER_BIN_DIR:-$TARGET/release}
# shellcheck disable=SC2034  # used by those who source this
LARDER=$BIN/larder
LARDERD=$BIN/larderd
PORT=7425

# The server's process id, if it runs.
server_pid() {
    local pid
    pid=$(cat "$STATE/larderd.pid" 2>/dev/null) || return 1
    is_ours "$pid" "$LARDERD" && say "$pid"
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# start_server STORE
start_server() {
    local listen=127.0.0.1:$PORT
    if ! port_is_free "$PORT"; then
        listen=127.0.0.1:0
        say "Port $PORT is taken; using another one"
    fi
    rm -f "$STATE/address"
    # A session of its own: the terminal's end must not end it.
    setsid nohup "$LARDERD" serve --store "$1" --listen "$listen" --port-file "$STATE/address" \
        </dev/null >>"$STATE/larderd.log" 2>&1 &
    local pid=$!
    say "$pid" >"$STATE/larderd.pid"
    say "$1" >"$STATE/store.path"
    server_answers() { [ -s "$STATE/address" ] || gone "$pid"; }
    if ! wait_for 30 server_answers || gone "$pid"; then
        tail -5 "$STATE/larderd.log" >&2
        die "the server did not start; $STATE/larderd.log says more."
    fi
}

# The mount points that scripts/start made, one in each line.
mount_points() { cat "$STATE/mounts" 2>/dev/null || true; }

remember_mount() {
    mount_points | grep -Fxq -- "$1" || say "$1" >>"$STATE/mounts"
}

forget_mount() {
    mount_points | grep -Fxv -- "$1" >"$STATE/mounts.new" || true
    mv "$STATE/mounts.new" "$STATE/mounts"
}
