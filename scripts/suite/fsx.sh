#!/bin/bash
# fsx, all 14 operations, two seeds or three: fsx.sh nfs|afs|direct. FSX_SEEDS repeats a run.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib/suite.sh"

operations=$(pick 1000 10000 100000)
read -ra seeds <<<"${FSX_SEEDS:-$RANDOM$RANDOM $RANDOM$RANDOM$(pick "" "" " $RANDOM$RANDOM")}"

cat >"$WORK/fsx.toml" <<EOF
[weights]
close_open = 1.0
invalidate = 1.0
mapread = 1.0
mapwrite = 1.0
read = 1.0
write = 1.0
truncate = 1.0
fsync = 1.0
fdatasync = 1.0
posix_fallocate = 1.0
punch_hole = 1.0
sendfile = 1.0
posix_fadvise = 1.0
copy_file_range = 1.0
EOF

# fsx 0.3 asks for an allocation of no bytes at times, and takes the EINVAL that posix_fallocate(3) has for it for the end.
asked_for_nothing() {
    grep -q 'does not support posix_fallocate' "$1" && grep POSIX_FALLOCATE "$1" | tail -n1 | grep -q '( *0x0 bytes)'
}

exercise() {
    local seed=$1
    mkdir -p "$WORK/artifacts"
    until fsx -f "$WORK/fsx.toml" -S "$seed" -N "$operations" -P "$WORK/artifacts" "$MNT/fsx-$1" >"$WORK/fsx.log" 2>&1; do
        cat "$WORK/fsx.log"
        asked_for_nothing "$WORK/fsx.log" || return 1
        seed=$((seed + 1))
        say "fsx allocated nothing; once more with FSX_SEEDS=$seed"
        rm "$MNT/fsx-$1"
    done
    rm "$MNT/fsx-$1"
}

start_world
for seed in "${seeds[@]}"; do
    check "fsx, $operations operations, FSX_SEEDS=$seed" exercise "$seed"
done
finish
