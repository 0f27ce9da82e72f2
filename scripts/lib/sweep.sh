# Ending what a run that died has left behind: processes, mounts and networks of $LARDER_TEST_TMP.
# shellcheck shell=bash

# Ends what is left in $LARDER_TEST_TMP, and nothing else.
sweep() {
    local file point type pid
    # What an interrupted harness has frozen would keep everybody waiting who uses it.
    while read -r _ point type _; do
        case $point:$type in "$LARDER_TEST_TMP"/*:ext4) fsfreeze -u "$point" 2>/dev/null || true ;; esac
    done </proc/self/mounts
    # By their names alone: looking at a mount that hangs would hang this, too.
    for file in "$LARDER_TEST_TMP"/*.pid "$LARDER_TEST_TMP"/*/*.pid; do
        [ -f "$file" ] || continue
        end_process "$(cat "$file")" "$LARDER_BIN_DIR/larder" || true
        end_process "$(cat "$file")" "$LARDER_BIN_DIR/larder-failpoints" || true
        end_process "$(cat "$file")" "$LARDER_BIN_DIR/larderd" || true
        end_process "$(cat "$file")" "$LARDER_BIN_DIR/larderd-failpoints" || true
    done
    # The table lists what is mounted inside after what it is mounted on.
    while read -r _ point type _; do
        case $point in "$LARDER_TEST_TMP"/*) ;; *) continue ;; esac
        warn "sweeping up the mount $point ($type)" || true
        umount "$point" 2>/dev/null || umount -l "$point" || true
    done < <(tac /proc/self/mounts)
    # Networks of afs_partition, which begin with the number of the process that made them.
    for file in /run/netns/larder-[0-9]*; do
        pid=${file#/run/netns/larder-} pid=${pid%%-*}
        if [ ! -e "$file" ] || [ -d "/proc/$pid" ]; then continue; fi
        warn "sweeping up the network namespace ${file##*/}" || true
        ip netns del "${file##*/}" || true
    done
}
