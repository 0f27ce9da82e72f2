#!/bin/bash
# The POSIX test suite on a mount, beside ext4 on this machine: pjdfstest.sh nfs|afs|direct
# Nothing may fail, and nothing be skipped that is not skipped on ext4, but what pjdfstest.expected lists.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib/suite.sh"

expected=$ROOT/scripts/suite/pjdfstest.expected
[ "$(id -u)" = 0 ] || die "pjdfstest needs root: most of it tests what other users may not do."

cat >"$WORK/pjdfstest.toml" <<EOF
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
EOF

# on DIR OUT: runs everything there. The exit code counts for nothing here: the figures do.
on() {
    mkdir "$1"
    chmod 755 "$1"
    (cd "$1" && timeout 300 pjdfstest -c "$WORK/pjdfstest.toml" -p "$1") >"$2" 2>&1 || true
    grep -q '^Summary: ' "$2" || { tail -20 "$2" && return 1; }
}

# in_place PLACE: a directory there whose path has 40 bytes. The suite builds the longest possible path from where it
# runs, and miscounts for some lengths; short ones also leave room for the paths of sockets.
in_place() {
    local pad=$((40 - ${#1} - 1))
    [ "$pad" -ge 1 ] || die "$1 is too long a path for pjdfstest: set TMPDIR to a shorter one."
    printf '%s/%s' "$1" "$(printf 'p%.0s' $(seq "$pad"))"
}

# figure WORD OUT: the number before the word in the closing line.
figure() { grep '^Summary: ' "$2" | grep -o "[0-9]* $1" | grep -o '[0-9]*'; }

# names STATE OUT: the tests with this outcome, one in each line.
names() { sed -n "s/^\([a-z_]*::[^ ]*\).* $1\$/\1/p" "$2" | sort; }

# listed STATE: the tests that pjdfstest.expected allows this outcome.
listed() { sed -n "s/[[:space:]]*#.*//; s/^$1 //p" "$expected" | sort; }

# A place on ext4: this machine's disk, or an image on it.
ext4_place() {
    if [ "$(stat -f -c %T "$WORK")" = ext2/ext3 ]; then
        say "$WORK"
        return
    fi
    truncate -s 256M "$WORK/ext4.img"
    mkfs.ext4 -q "$WORK/ext4.img"
    mkdir "$WORK/ext4"
    mount -o loop "$WORK/ext4.img" "$WORK/ext4"
    say "$WORK/ext4"
}

compare() {
    local ext4 place
    place=$(ext4_place)
    on "$(in_place "$place")" "$WORK/ext4.out"
    [ "$place" = "$WORK" ] || umount "$WORK/ext4"
    on "$(in_place "$MNT")" "$WORK/mount.out"
    ext4=$(grep '^Summary: ' "$WORK/ext4.out")
    say "ext4:   $ext4"
    say "larder: $(grep '^Summary: ' "$WORK/mount.out")"
    [ "$(figure total "$WORK/ext4.out")" -gt 300 ]
    same "$(figure total "$WORK/mount.out")" "$(figure total "$WORK/ext4.out")"
    if [ "$(figure failed "$WORK/ext4.out")" != 0 ]; then
        grep -A4 ' FAILED$' "$WORK/ext4.out" | head -30
        die "ext4 itself fails here, so this says nothing"
    fi

    local unexpected
    unexpected=$(comm -23 <(names FAILED "$WORK/mount.out") <(listed failed))
    if [ -n "$unexpected" ]; then
        say "failed here and not on ext4:"
        say "$unexpected"
        # With what each of them said.
        grep -A4 ' FAILED$' "$WORK/mount.out" | head -60
        return 1
    fi
    unexpected=$(comm -23 <(names skipped "$WORK/mount.out") \
        <(sort <(names skipped "$WORK/ext4.out") <(listed skipped)))
    if [ -n "$unexpected" ]; then
        say "skipped here and not on ext4:"
        say "$unexpected"
        return 1
    fi
}

start_world
check 'pjdfstest beside ext4' compare
finish
