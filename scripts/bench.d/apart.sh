# Peers that scripts/bench runs in namespaces: MooseFS and OpenAFS do not take an address of the loopback range, and
# OpenAFS's ports and directories are fixed.
# shellcheck shell=bash

# Where their servers are.
APART=10.77.0.1

# apart PEER DIR MOUNTPOINT FUNCTION: runs FUNCTION DIR, which starts servers, as the first process of a network, a mount
# and a process namespace, whose end is that of all in it. What is mounted on MOUNTPOINT is seen outside too. DIR gets
# the process's id as `pid`, and `ready` when FUNCTION has returned.
apart() {
    local peer=$1 dir=$2 outer
    can_use "$peer" unshare=util-linux ip=iproute2 pgrep=procps || return 1
    [ "$(id -u)" = 0 ] || { left_out "$peer" "namespaces need root" || return 1; }
    unshare --net --mount --pid --fork true 2>"$WORK/apart.log" ||
        { left_out "$peer" "there can be no namespaces here: $(tail -1 "$WORK/apart.log")" || return 1; }
    mkdir -p "$dir" "$3"
    mount --bind "$3" "$3"
    # Not one with its parent.
    mount --make-private "$3"
    mount --make-shared "$3"
    # shellcheck disable=SC2016  # for the inner shell to expand
    unshare --net --mount --pid --fork --kill-child --propagation unchanged \
        bash -euo pipefail -c '. "$0/lib/common.sh"; . "$0/bench.d/apart.sh"; inside "$@"' "$ROOT/scripts" "${@:2}" \
        >"$WORK/$peer.log" 2>&1 &
    outer=$!
    has() { [ -s "$dir/$1" ] || gone "$outer"; }
    wait_for 10 has pid || true
    [ ! -s "$dir/pid" ] || to_be_ended "$(<"$dir/pid")" "$(command -v bash)"
    wait_for 120 has ready || true
    [ -s "$dir/ready" ] || left_out "$peer" "its servers do not start: $(tail -2 "$WORK/$peer.log")"
}

# inside DIR MOUNTPOINT FUNCTION
inside() {
    local pid point
    # The /proc that is mounted is the one outside, and so are its ids.
    read -r pid _ </proc/self/stat
    say "$pid" >"$1/pid"
    # The first process of a namespace gets no signals but those that it asks for.
    trap 'exit 143' TERM
    while read -r _ point _; do
        point=$(printf '%b' "$point")
        [ "$point" = "$2" ] || mount --make-private "$point"
    done </proc/self/mounts
    ip link set lo up
    ip address add "$APART/32" dev lo
    "$3" "$1"
    say yes >"$1/ready"
    wait
}

# in_apart DIR COMMAND...: runs a command beside those servers.
in_apart() { nsenter --target "$(<"$1/pid")" --net --mount --pid -- "${@:2}"; }

# runs_not DIR PROGRAM: whether no program of that name runs there.
runs_not() { ! pgrep --ns "$(<"$1/pid")" --nslist pid -x "$2" >/dev/null; }

# start_moosefs DIR: a master and one chunk server.
start_moosefs() {
    can_use MooseFS mfsmaster=moosefs-master mfschunkserver=moosefs-chunkserver mfsmount=moosefs-client || return 1
    apart MooseFS "$WORK/moosefs-servers" "$1" moosefs_servers || return 1
    mount_moosefs "$1"
}

moosefs_servers() {
    local dir=$1
    mkdir "$dir/master" "$dir/chunkserver" "$dir/chunks"
    say "* / rw,alldirs,admin,maproot=0" >"$dir/exports"
    say "$dir/chunks" >"$dir/disks"
    : >"$dir/topology"
    cat >"$dir/master.cfg" <<EOF
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = $dir/master
EXPORTS_FILENAME = $dir/exports
TOPOLOGY_FILENAME = $dir/topology
EOF
    cat >"$dir/chunkserver.cfg" <<EOF
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = $dir/chunkserver
HDD_CONF_FILENAME = $dir/disks
MASTER_HOST = $APART
EOF
    # What a new master begins with.
    printf 'MFSM NEW' >"$dir/master/metadata.mfs"
    mfsmaster -f -c "$dir/master.cfg" start &
    mfschunkserver -f -c "$dir/chunkserver.cfg" start &
}

mount_moosefs() {
    local dir=$WORK/moosefs-servers log=$WORK/mfsmount.log
    wait_for 20 runs_not "$dir" mfsmount || { left_out MooseFS "its client does not end" || return 1; }
    moosefs_mounts() { in_apart "$dir" timeout 20 mfsmount "$1" -o "mfsmaster=$APART" >"$log" 2>&1 && is_mounted "$1"; }
    wait_for 30 moosefs_mounts "$1" || { left_out MooseFS "its mount fails: $(tail -1 "$log")" || return 1; }
    # Files can be written once the chunk server has come.
    moosefs_answers() { say 1 | timeout 20 tee "$1/probe" >>"$log" 2>&1 && timeout 20 rm "$1/probe"; }
    wait_for 60 moosefs_answers "$1" || left_out MooseFS "its mount does not answer: $(tail -1 "$log")"
}

# start_openafs DIR: a cell with one server of each kind, and a FUSE client that shows the cell's only volume.
start_openafs() {
    can_use OpenAFS afsd.fuse=openafs-fuse /usr/lib/openafs/fileserver=openafs-fileserver \
        /usr/lib/openafs/vlserver=openafs-dbserver perl=perl-base || return 1
    apart OpenAFS "$WORK/openafs-servers" "$1" openafs_servers || return 1
    mount_openafs "$1"
}

openafs_servers() {
    local dir=$1 name root=$1/root servers=/usr/lib/openafs
    mkdir -p "$dir/etc/server" "$dir/var/local" "$dir/var/db" "$dir/log" "$dir/vicepa" "$root" /var/log/openafs
    say bench.local | tee "$dir/etc/ThisCell" >"$dir/etc/server/ThisCell"
    printf '>bench.local\n%s #one\n' "$APART" | tee "$dir/etc/CellServDB" >"$dir/etc/server/CellServDB"
    say "$APART" >"$dir/var/local/NetInfo"
    # Who manages it needs no key.
    : >"$dir/var/local/NoAuth"
    : >"$dir/vicepa/AlwaysAttach"
    mount --bind "$dir/etc" /etc/openafs
    mount --bind "$dir/var" /var/lib/openafs
    mount --bind "$dir/log" /var/log/openafs
    # Partitions are looked for in the root directory and nowhere else: the file server gets one of its own.
    mount -t tmpfs root "$root"
    for name in bin dev etc lib lib64 proc sbin tmp usr var; do
        if [ -L "/$name" ]; then
            cp -P "/$name" "$root/"
        elif [ -d "/$name" ]; then
            mkdir "$root/$name"
            mount --rbind "/$name" "$root/$name"
        fi
    done
    mkdir "$root/vicepa"
    mount --bind "$dir/vicepa" "$root/vicepa"

    "$servers/ptserver" &
    "$servers/vlserver" &
    # Each takes some seconds to elect itself.
    wait_for 60 pts createuser admin -noauth 2>/dev/null
    wait_for 60 vos listvldb -noauth -quiet 2>/dev/null
    chroot "$root" "$servers/fileserver" &
    chroot "$root" "$servers/volserver" &
    wait_for 60 vos create "$APART" a root.afs -maxquota 0 -noauth 2>/dev/null
    # A new volume is its administrators' alone, and a client without tokens cannot change that. But the volume's dump
    # has their id (-204) beside their rights (all), and what is restored is anyone's (-101).
    vos dump root.afs -file "$dir/dump" -noauth
    LC_ALL=C perl -0777 -pi -e 's/\xff\xff\xff\x34(\x00\x00\x00\x7f)/\xff\xff\xff\x9b$1/' "$dir/dump"
    vos restore "$APART" a root.afs -file "$dir/dump" -overwrite full -noauth
}

mount_openafs() {
    local dir=$WORK/openafs-servers log=$WORK/afsd.log cache
    wait_for 20 runs_not "$dir" afsd.fuse || { left_out OpenAFS "its client does not end" || return 1; }
    cache=$(mktemp -d "$dir/cache.XXXXXX")
    # In KiB.
    say "$1:$cache:1000000" >"$dir/etc/cacheinfo"
    in_apart "$dir" timeout 60 afsd.fuse -confdir "$dir/etc" -cachedir "$cache" -mountdir "$1" >"$log" 2>&1 ||
        { left_out OpenAFS "its client does not start: $(tail -1 "$log")" || return 1; }
    openafs_answers() { is_mounted "$1" && timeout 10 mkdir "$1/probe" && rmdir "$1/probe"; }
    wait_for 60 openafs_answers "$1" 2>>"$log" || left_out OpenAFS "its mount does not answer: $(tail -1 "$log")"
}
