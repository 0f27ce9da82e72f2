# Ending what a run that died has left behind: processes, mounts and networks of $LARDER_TEST_TMP.
# shellcheck shell=bash

# each_process COMMAND: runs COMMAND PID BINARY for each server and client that was started in $LARDER_TEST_TMP, and each
# binary that it may be.
each_process() {
    local file name
    # By their names alone: looking at a mount that hangs would hang this, too.
    for file in "$LARDER_TEST_TMP"/{*,*/*,*/*/*}.pid; do
        [ -f "$file" ] || continue
        for name in "$LARDER_BIN_DIR"/{larder,larderd}{,-failpoints} /usr/bin/etcd; do
            "$1" "$(cat "$file")" "$name" || true
        done
    done
}

# Ends what is left in $LARDER_TEST_TMP, and nothing else.
sweep() {
    local file point type pid
    # What an interrupted harness has frozen would keep everybody waiting who uses it.
    while read -r _ point type _; do
        case $point:$type in "$LARDER_TEST_TMP"/*:ext4) fsfreeze -u "$point" 2>/dev/null || true ;; esac
    done </proc/self/mounts
    each_process end_process
    # The table lists what is mounted inside after what it is mounted on.
    while read -r _ point type _; do
        case $point in "$LARDER_TEST_TMP"/*) ;; *) continue ;; esac
        warn "sweeping up the mount $point ($type)" || true
        umount "$point" 2>/dev/null || umount -l "$point" || true
    done < <(tac /proc/self/mounts)
    # Networks of tests, which begin with the number of the process that made them.
    for file in /run/netns/larder-[0-9]*; do
        pid=${file#/run/netns/larder-} pid=${pid%%-*}
        if [ ! -e "$file" ] || [ -d "/proc/$pid" ]; then continue; fi
        warn "sweeping up the network namespace ${file##*/}" || true
        ip netns del "${file##*/}" || true
    done
}
