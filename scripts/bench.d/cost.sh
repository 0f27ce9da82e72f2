# The part `cost` of scripts/bench: what afs mode costs where everything is cached, and how it does beside its peers.
# shellcheck shell=bash disable=SC2154  # rounds, mib, files and tree are those of scripts/bench

# text DIR COUNT: a tree of small text files, the same each time, each with one line `the end`.
text() {
    local i
    for ((i = 0; i <= $2 / 30; i++)); do mkdir -p "$1/$(printf 'dir-%03d' "$i")"; done
    awk -v dir="$1" -v count="$2" 'BEGIN {
        srand(1)
        for (i = 0; i < count; i++) {
            file = sprintf("%s/dir-%03d/file-%04d", dir, i / 30, i)
            # Most are small.
            for (lines = 5 + int(rand() * rand() * 300); lines > 0; lines--) print i, lines, rand(), rand() >file
            print "the end" >file
            close(file)
        }
    }'
}

# Git without what whoever runs this has set up, also where files belong to somebody else.
plain_git() { timeout 300 env GIT_CONFIG_GLOBAL="$WORK/gitconfig" GIT_CONFIG_NOSYSTEM=1 git "$@"; }

# What each candidate gets: small files, a tree, and a repository.
make_inputs() {
    local dir=$WORK/inputs
    mkdir -p "$dir/small"
    head -c $((files * 4096)) /dev/urandom | split -b 4096 -a 6 -d - "$dir/small/file-"
    text "$dir/tree" "$tree"
    text "$dir/repository" $((tree * 2 / 3))
    printf '[safe]\ndirectory = *\n[user]\nname = bench\nemail = bench@localhost\n[gc]\nauto = 0\n' >"$WORK/gitconfig"
    plain_git -C "$dir/repository" -c init.defaultBranch=main init -q
    plain_git -C "$dir/repository" add .
    plain_git -C "$dir/repository" commit -q -m "All of it"
    plain_git -C "$dir/repository" repack -q -a
    tar -C "$dir" --exclude='repository/.git/objects/??' -cf "$WORK/inputs.tar" small tree repository
    tar -C "$dir" -cf "$WORK/tree.tar" tree
}

# untar FILE DIR: without the times, which OpenAFS's FUSE client cannot set.
untar() { timeout 600 tar -C "$2" --no-same-owner -xmf "$1"; }

# fresh CANDIDATE: mounts it again, with empty caches.
fresh() {
    case $1 in
    afs | nfs)
        unmount_larder "$WORK/$1"
        # But not many gigabytes.
        find "$WORK" -maxdepth 4 -path "$WORK/$1.cache.*/files/*" -size +100M -delete
        mount_larder "$1" "$WORK/$1"
        ;;
    *)
        unmount_peer "$WORK/$1" && "mount_$1" "$WORK/$1"
        ;;
    esac
}

# times COUNT COMMAND...
times() {
    local i
    for ((i = 0; i < $1; i++)); do "${@:2}" || return 1; done
}

# timed NAME COUNT COMMAND...: notes how many a second it does of the COUNT things that the command does.
timed() {
    local begin=${EPOCHREALTIME//[!0-9]/} took
    "${@:3}" || return 1
    took=$((${EPOCHREALTIME//[!0-9]/} - begin))
    note "$1" "$(awk -v count="$2" -v took="$took" 'BEGIN{printf "%.1f", count * 1e6 / took}')"
}

# The loads, each on one CANDIDATE.

big() {
    local i
    warm
    # At first into the caches.
    fio_mibs read "$WORK/$1/big" >"$WORK/load"
    for i in 1 2 3; do note "big-$1" "$(fio_mibs read "$WORK/$1/big")"; done
}

small() {
    local op value
    timeout 300 "$PROBE" existing "$WORK/$1/small" >"$WORK/load" || return 1
    while read -r op value; do note "$op-$1" "$value"; done <"$WORK/load"
}

# Few files are removed before the end, not what is unpacked nor inputs nor the caches of earlier mounts: ext4 passes
# over the inodes of files that were removed less than a minute ago, or six (recently_deleted in fs/ext4/ialloc.c), one by
# one, and puts new directories just there. Those that make files would pay for those that removed some.
unpack() {
    local dir
    dir=$(mktemp -d "$WORK/$1/unpacked-XXXXXX") && timed "untar-$1" "$tree" untar "$WORK/tree.tar" "$dir"
}

search() {
    finds_all() { [ "$(timeout 300 grep -r 'the end' "$1" | wc -l)" = "$tree" ]; }
    fresh "$1" && timed "cold-$1" "$tree" finds_all "$WORK/$1/tree" &&
        timed "grep-$1" $((tree * 5)) times 5 finds_all "$WORK/$1/tree"
}

status() {
    local dir=$WORK/$1/repository
    is_clean() { [ -z "$(GIT_OPTIONAL_LOCKS=0 plain_git -C "$1" status --porcelain || say failed)" ]; }
    # What the index says of the files may be another mount's.
    plain_git -C "$dir" update-index -q --refresh && is_clean "$dir" && timed "git-$1" 5 times 5 is_clean "$dir"
}

# on LOAD CANDIDATE...: the load on one after the other. Peers may fail.
on() {
    local candidate
    for candidate in "${@:2}"; do
        # Not in the empty directory below a mount that has gone.
        { [ "$candidate" = disk ] || is_mounted "$WORK/$candidate"; } && "$1" "$candidate" && continue
        case $candidate in
        disk | afs | nfs) die "$1 fails on $candidate" ;;
        *) say "note: $1 fails on $candidate" ;;
        esac
    done
}

cost() {
    local i candidate figure unit title peers=()
    packages git=git split=coreutils
    make_inputs
    mkdir "$WORK/disk"
    start_server "$WORK/cost" process
    mount_larder afs "$WORK/afs"
    mount_larder nfs "$WORK/nfs"
    for candidate in gluster moosefs sshfs openafs; do
        start_peer "$candidate" && peers+=("$candidate")
    done
    # To nfs mode it comes from afs mode.
    for candidate in disk afs "${peers[@]}"; do
        untar "$WORK/inputs.tar" "$WORK/$candidate" || die "$candidate does not take the files"
    done
    fio_mibs write "$WORK/disk/big" >"$WORK/load"
    fio_mibs write "$WORK/afs/big" >"$WORK/load"
    # So that no file is as new as the index, also where times are in seconds.
    sleep 2
    for ((i = 1; i <= rounds; i++)); do
        say "round $i of $rounds"
        on big disk afs
        on small disk afs nfs "${peers[@]}"
        on unpack afs nfs "${peers[@]}"
        on search afs nfs "${peers[@]}"
        on status afs nfs "${peers[@]}"
    done
    unmount_larder "$WORK/afs"
    unmount_larder "$WORK/nfs"
    end_server
    row "warm read, afs / disk" MiB/s big-afs big-disk 0.9
    row "warm stat, afs / disk" ops/s stat-afs stat-disk 0.4
    while read -r figure unit title; do
        for candidate in "${peers[@]}"; do
            if [ -e "$WORK/figures/$figure-$candidate" ]; then
                row "$title, afs / $candidate" "$unit" "$figure-afs" "$figure-$candidate" 1
            else
                say "note: there is no figure for $title on $candidate"
            fi
        done
        row "$title, afs / nfs mode" "$unit" "$figure-afs" "$figure-nfs"
    done <<EOF
open ops/s open+read+close
untar files/s untar
git runs/s git status
cold files/s grep -r cold
grep files/s grep -r warm
EOF
}
