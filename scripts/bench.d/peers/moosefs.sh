# MooseFS: a master and one chunk server.
# shellcheck shell=bash

# shellcheck disable=SC2034  # used by peer
programs=(mfsmaster=moosefs-master mfschunkserver=moosefs-chunkserver mfsmount=moosefs-client)

version() { mfsmaster -v 2>&1 | sed -n '1s/^version: //p'; }

servers() {
    mkdir -p "$1/master" "$1/chunkserver" "$1/chunks"
    say "* / rw,alldirs,admin,maproot=0" >"$1/exports"
    say "$1/chunks" >"$1/disks"
    : >"$1/topology"
    cat >"$1/master.cfg" <<EOF
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = $1/master
EXPORTS_FILENAME = $1/exports
TOPOLOGY_FILENAME = $1/topology
EOF
    cat >"$1/chunkserver.cfg" <<EOF
WORKING_USER = root
WORKING_GROUP = root
DATA_PATH = $1/chunkserver
HDD_CONF_FILENAME = $1/disks
MASTER_HOST = $HOST
EOF
    # What a new master begins with.
    printf 'MFSM NEW' >"$1/master/metadata.mfs"
    started "$1/servers.pids" mfsmaster -f -c "$1/master.cfg" start
    started "$1/servers.pids" mfschunkserver -f -c "$1/chunkserver.cfg" start
    answers() { (exec 3<>"/dev/tcp/$HOST/9421") 2>/dev/null; }
    wait_for 20 answers || die "its master does not start: $(tail -n 1 "$1/daemons.log")"
}

client() {
    # It ends at once as long as the master is not ready.
    mounts() {
        timeout 20 mfsmount "$3" -o "mfsmaster=$HOST" >>"$1/daemons.log" 2>&1 && is_mounted "$3"
    }
    wait_for 40 mounts "$@" || return 1
    pgrep -n -x mfsmount >"$1/client-$2.pids"
}
