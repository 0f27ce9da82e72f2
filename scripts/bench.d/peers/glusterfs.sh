# GlusterFS: one brick and its client, with the volume files that glusterd would write, less the translators that only
# replication, quota and the like need. So it has less to do than a stock volume.
# shellcheck shell=bash

# shellcheck disable=SC2034  # used by peer
programs=(glusterfs=glusterfs-client glusterfsd=glusterfs-server)

version() { glusterfs --version | sed -n '1s/^glusterfs //p'; }

servers() {
    mkdir -p "$1/brick"
    cat >"$1/brick.vol" <<EOF
volume posix
    type storage/posix
    option directory $1/brick
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
    option transport.socket.bind-address $HOST
    option transport.socket.listen-port 2024
    option transport.tcp-nodelay on
    option auth.addr.threads.allow $HOST
    subvolumes threads
end-volume
EOF
    cat >"$1/client.vol" <<EOF
volume client
    type protocol/client
    option transport-type tcp
    option remote-host $HOST
    option remote-port 2024
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
    started "$1/servers.pids" glusterfsd -N -f "$1/brick.vol" -l "$1/brick.log" -p "$1/brick.pid"
    answers() { (exec 3<>"/dev/tcp/$HOST/2024") 2>/dev/null; }
    wait_for 20 answers || die "its brick does not start: $(tail -n 1 "$1/brick.log")"
}

client() {
    started "$1/client-$2.pids" glusterfs -N -f "$1/client.vol" -l "$1/client-$2.log" "$3"
}
