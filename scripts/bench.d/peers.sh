# The file systems that scripts/bench measures beside Larder, each private to the run, on the loopback.
# A peer that cannot run here is left out with a note, and its start returns 1.
# shellcheck shell=bash

free_port() {
    local port
    while port=$((20000 + RANDOM % 20000)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    say "$port"
}

left_out() {
    say "note: $1 is left out: $2"
    return 1
}

# can_use PEER PROGRAM=PACKAGE...: whether what the peer consists of is here, or can be installed.
can_use() {
    local peer=$1 why
    shift
    if why=$(packages "$@" 2>&1); then
        [ -z "$why" ] || say "$why"
    else
        left_out "$peer" "$why"
    fi
}

# Which were started, or left out, by an earlier part.
declare -A PEERS=()

# start_peer PEER: mounts it on $WORK/PEER, unless that was done.
start_peer() {
    if [ -z "${PEERS[$1]:-}" ]; then
        PEERS[$1]=out
        "start_$1" "$WORK/$1" && PEERS[$1]=in
    fi
    [ "${PEERS[$1]}" = in ]
}

# unmount_peer DIR: once nothing uses it.
unmount_peer() {
    unmounts() { umount "$1" 2>/dev/null; }
    wait_for 20 unmounts "$1"
}

# start_sshfs DIR: an sshd with a key and a configuration of its own.
start_sshfs() {
    local dir=$WORK/ssh port
    can_use sshfs sshfs=sshfs /usr/sbin/sshd=openssh-server ssh-keygen=openssh-client || return 1
    port=$(free_port)
    mkdir -p "$dir/files" "$1"
    [ -d /run/sshd ] || as_root mkdir -p /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$dir/host"
    ssh-keygen -q -t ed25519 -N '' -f "$dir/user"
    cat >"$dir/sshd_config" <<EOF
ListenAddress 127.0.0.1:$port
HostKey $dir/host
AuthorizedKeysFile $dir/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
EOF
    /usr/sbin/sshd -D -f "$dir/sshd_config" -E "$WORK/sshd.log" &
    to_be_ended $! /usr/sbin/sshd
    sshd_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
    wait_for 10 sshd_answers || { left_out sshfs "its sshd does not start: $(tail -1 "$WORK/sshd.log")" && return 1; }
    say "$port" >"$dir/port"
    mount_sshfs "$1"
}

mount_sshfs() {
    local dir=$WORK/ssh port
    port=$(<"$dir/port")
    sshfs -p "$port" -o "IdentityFile=$dir/user,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR" \
        "$(id -un)@127.0.0.1:$dir/files" "$1" 2>"$WORK/sshfs.log" ||
        left_out sshfs "$(tail -1 "$WORK/sshfs.log")"
}

# start_gluster DIR: one brick and a client, with the volume files that glusterd would write, less the translators
# that only replication, quota and the like need. So it has less to do than a stock volume.
start_gluster() {
    local dir=$WORK/glusterfs port
    can_use GlusterFS glusterfs=glusterfs-client glusterfsd=glusterfs-server || return 1
    port=$(free_port)
    mkdir -p "$dir/brick" "$1"
    cat >"$dir/brick.vol" <<EOF
volume posix
    type storage/posix
    option directory $dir/brick
end-volume
volume locks
    type features/locks
    subvolumes posix
end-volume
volume threads
    type performance/io-threads
    subvolumes locks
end-volume
volume brick
    type protocol/server
    option transport-type tcp
    option transport.socket.bind-address 127.0.0.1
    option transport.socket.listen-port $port
    option transport.tcp-nodelay on
    option auth.addr.threads.allow 127.0.0.1
    subvolumes threads
end-volume
EOF
    cat >"$dir/client.vol" <<EOF
volume client
    type protocol/client
    option transport-type tcp
    option remote-host 127.0.0.1
    option remote-port $port
    option remote-subvolume threads
    option transport.tcp-nodelay on
end-volume
volume write-behind
    type performance/write-behind
    subvolumes client
end-volume
volume open-behind
    type performance/open-behind
    subvolumes write-behind
end-volume
volume quick-read
    type performance/quick-read
    subvolumes open-behind
end-volume
volume md-cache
    type performance/md-cache
    subvolumes quick-read
end-volume
EOF
    glusterfsd -N -f "$dir/brick.vol" -l "$WORK/brick.log" -p "$dir/brick.pid" &
    to_be_ended $! "$(command -v glusterfsd)"
    brick_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }
    wait_for 20 brick_answers || { left_out GlusterFS "its brick does not start: $(tail -1 "$WORK/brick.log")" && return 1; }
    mount_gluster "$1"
}

mount_gluster() {
    glusterfs -N -f "$WORK/glusterfs/client.vol" -l "$WORK/gluster.log" "$1" &
    to_be_ended $! "$(command -v glusterfs)"
    gluster_answers() { is_mounted "$1" && timeout 5 touch "$1/probe" && rm "$1/probe"; }
    wait_for 20 gluster_answers "$1" || left_out GlusterFS "its mount does not answer: $(tail -1 "$WORK/gluster.log")"
}
