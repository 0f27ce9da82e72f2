# OpenAFS: a cell with one server of each kind, and the client that uses FUSE. It shows the cell's only volume.
# shellcheck shell=bash

# shellcheck disable=SC2034  # used by peer
programs=(afsd.fuse=openafs-fuse /usr/lib/openafs/fileserver=openafs-fileserver
    /usr/lib/openafs/vlserver=openafs-dbserver perl=perl-base)

version() { dpkg-query --show --showformat '${Version}\n' openafs-fuse; }

servers() {
    local dir=$1 name root=$1/root daemons=/usr/lib/openafs
    mkdir -p "$dir/etc/server" "$dir/var/local" "$dir/var/db" "$dir/log" "$dir/vicepa" "$root" /var/log/openafs
    say bench.local | tee "$dir/etc/ThisCell" >"$dir/etc/server/ThisCell"
    printf '>bench.local\n%s #one\n' "$HOST" | tee "$dir/etc/CellServDB" >"$dir/etc/server/CellServDB"
    say "$HOST" >"$dir/var/local/NetInfo"
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
    started "$dir/servers.pids" "$daemons/ptserver"
    started "$dir/servers.pids" "$daemons/vlserver"
    # Each takes some seconds to elect itself.
    wait_for 60 pts createuser admin -noauth 2>/dev/null
    wait_for 60 vos listvldb -noauth -quiet 2>/dev/null
    started "$dir/servers.pids" chroot "$root" "$daemons/fileserver"
    started "$dir/servers.pids" chroot "$root" "$daemons/volserver"
    wait_for 60 vos create "$HOST" a root.afs -maxquota 0 -noauth 2>/dev/null
    # A new volume is its administrators' alone, and a client without tokens cannot change that. But the volume's dump
    # has their id (-204) beside their rights (all), and what is restored is anyone's (-101).
    vos dump root.afs -file "$dir/dump" -noauth
    LC_ALL=C perl -0777 -pi -e 's/\xff\xff\xff\x34(\x00\x00\x00\x7f)/\xff\xff\xff\x9b$1/' "$dir/dump"
    vos restore "$HOST" a root.afs -file "$dir/dump" -overwrite full -noauth
}

client() {
    local cache
    [ "$2" = 0 ] || die "it can be mounted once on a machine"
    cache=$(mktemp -d "$1/cache.XXXXXX")
    # In KiB.
    say "$3:$cache:1000000" >"$1/etc/cacheinfo"
    timeout 60 afsd.fuse -confdir "$1/etc" -cachedir "$cache" -mountdir "$3" >>"$1/daemons.log" 2>&1 || return 1
    pgrep -n -x afsd.fuse >"$1/client-$2.pids"
}
