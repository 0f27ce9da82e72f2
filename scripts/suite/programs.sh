#!/bin/bash
# Everyday programs on a mount: programs.sh nfs|afs|direct
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib/suite.sh"

files=$(pick 500 600 3000)
# Every operation is a request there.
[ "$MODE" != direct ] || files=$(pick 120 120 3000)
export GIT_CONFIG_GLOBAL=$WORK/gitconfig GIT_CONFIG_SYSTEM=/dev/null HOME=$WORK
cat >"$GIT_CONFIG_GLOBAL" <<EOF
[user]
    name = Larder
    email = larder@localhost
[safe]
    directory = *
[init]
    defaultBranch = main
EOF

# A source tree of at least this many files outside the mount, with links, modes and an empty directory.
make_tree() {
    local i dir
    for ((i = 0; i < files; i++)); do
        dir=$WORK/tree/module-$((i % 23))/part-$((i % 7))
        mkdir -p "$dir"
        seq "$i" $((i + i * i % 700)) >"$dir/file-$i.txt"
    done
    head -c 3000000 /dev/urandom >"$WORK/tree/blob"
    ln -s module-1/part-1 "$WORK/tree/link"
    ln -s /nowhere "$WORK/tree/dangling"
    ln "$WORK/tree/blob" "$WORK/tree/hard-link"
    mkdir "$WORK/tree/empty"
    chmod 750 "$WORK/tree/module-2"
    : >"$WORK/tree/nothing"
    tar -C "$WORK" -cf "$WORK/tree.tar" tree
}

untar() {
    tar -C "$MNT" -xpf "$WORK/tree.tar"
    diff -r --no-dereference "$WORK/tree" "$MNT/tree"
    same "$(find "$MNT/tree" -type f | wc -l)" "$(find "$WORK/tree" -type f | wc -l)"
    same "$(stat -c %a "$MNT/tree/module-2")" 750
    same "$(stat -c %i "$MNT/tree/blob")" "$(stat -c %i "$MNT/tree/hard-link")"
}

tar_again() {
    tar -C "$MNT" -cf "$MNT/again.tar" tree
    tar -C "$MNT" -df "$MNT/again.tar"
    tar -C "$WORK/tree/.." -df "$MNT/again.tar"
}

git_life() {
    cd "$MNT/tree"
    git init -q
    git add -A
    git commit -q -m first
    echo change >>module-3/part-3/file-3.txt
    git commit -q -am second
    git gc -q
    git fsck --full --strict
    same "$(git status --porcelain)" ''
    git clone -q "$MNT/tree" "$MNT/clone"
    # git keeps no empty directories.
    diff -r -x .git -x empty --no-dereference "$MNT/tree" "$MNT/clone"
    cd "$MNT/clone"
    git fsck --full
    git checkout -q -b side HEAD~1
    git checkout -q main
    same "$(git log --oneline | wc -l)" 2
}

cargo_build() {
    mkdir -p "$MNT/crate/src"
    printf '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n' >"$MNT/crate/Cargo.toml"
    printf 'fn main() { println!("{}", tiny::sum(&[1, 2, 39])); }\n' >"$MNT/crate/src/main.rs"
    printf 'pub fn sum(of: &[i32]) -> i32 { of.iter().sum() }\n#[test]\nfn adds() { assert_eq!(sum(&[1, 2]), 3); }\n' \
        >"$MNT/crate/src/lib.rs"
    cd "$MNT/crate"
    # In the mount, not where the environment says; rustup needs its own home.
    unset CARGO_TARGET_DIR
    export HOME=$REAL_HOME
    cargo build --offline --quiet
    same "$(./target/debug/tiny)" 42
    cargo test --offline --quiet
    # Nothing has changed, so nothing is built: times must be right for that.
    same "$(cargo build --offline 2>&1 | grep -c Compiling || true)" 0
}

c_build() {
    local i
    mkdir -p "$MNT/c"
    cd "$MNT/c"
    {
        printf 'OBJECTS =%s\n' "$(printf ' part%d.o' {1..20})"
        # shellcheck disable=SC2016  # make expands these
        printf 'program: main.o $(OBJECTS)\n\t$(CC) -o $@ $^\n%%.o: %%.c\n\t$(CC) -c -o $@ $<\n'
    } >Makefile
    for i in {1..20}; do echo "int part$i(void) { return $i; }" >"part$i.c"; done
    {
        echo '#include <stdio.h>'
        for i in {1..20}; do echo "int part$i(void);"; done
        echo "int main(void) { return (0$(printf ' + part%d()' {1..20})) == 210 ? puts(\"210\") < 0 : 1; }"
    } >main.c
    make -j2
    same "$(./program)" 210
    same "$(make -j2)" "make: 'program' is up to date."
}

rsync_twice() {
    rsync -aH "$WORK/tree/" "$MNT/mirror/"
    diff -r --no-dereference "$WORK/tree" "$MNT/mirror"
    same "$(rsync -aH --itemize-changes "$WORK/tree/" "$MNT/mirror/")" ''
    echo more >>"$WORK/tree/nothing"
    same "$(rsync -aH --out-format=%n "$WORK/tree/" "$MNT/mirror/")" nothing
}

sqlite() {
    local rows=1000
    {
        echo 'create table t (id integer primary key, text text);'
        for ((i = 0; i < rows; i++)); do echo "begin; insert into t (text) values ('row $i'); commit;"; done
    } >"$WORK/rows.sql"
    sqlite3 "$MNT/test.db" <"$WORK/rows.sql"
    same "$(sqlite3 "$MNT/test.db" 'select count(*) from t')" $rows
    same "$(sqlite3 "$MNT/test.db" 'pragma integrity_check')" ok
    same "$(sqlite3 "$MNT/test.db" "select text from t where id = $rows")" "row $((rows - 1))"
}

editors() {
    printf 'one\ntwo\nthree\n' >"$MNT/text"
    chmod 640 "$MNT/text"
    sed -i 's/two/2/' "$MNT/text"
    same "$(cat "$MNT/text")" $'one\n2\nthree'
    same "$(stat -c %a "$MNT/text")" 640
    vim -u NONE -es -c '%s/three/3/' -c wq "$MNT/text"
    same "$(cat "$MNT/text")" $'one\n2\n3'
    same "$(find "$MNT" -maxdepth 1 -name '.text*' | wc -l)" 0
}

find_and_du() {
    same "$(find "$MNT/mirror" | wc -l)" "$(find "$WORK/tree" | wc -l)"
    same "$(find "$MNT/mirror" -newermt '1 hour' | wc -l)" 0
    same "$(du -s --apparent-size --block-size=1 "$MNT/mirror/blob" | cut -f1)" 3000000
    du -s "$MNT"
    same "$(find "$MNT/mirror" -type l | wc -l)" 2
}

sparse_copies() {
    local mib
    mib=$(pick 10 10 40)
    [ "$MODE" != direct ] || mib=$(pick 4 4 40)
    truncate -s "${mib}M" "$WORK/sparse"
    echo data | dd of="$WORK/sparse" bs=1 seek=$((mib / 2))M conv=notrunc status=none
    cp --sparse=always "$WORK/sparse" "$MNT/sparse"
    cmp "$WORK/sparse" "$MNT/sparse"
    [ "$(du -k "$MNT/sparse" | cut -f1)" -lt 1024 ]
    cp --sparse=always "$MNT/sparse" "$MNT/sparse2"
    cmp "$MNT/sparse" "$MNT/sparse2"
    cp --reflink=auto "$MNT/sparse" "$MNT/sparse3"
    cmp "$MNT/sparse" "$MNT/sparse3"
}

moves() {
    mkdir -p "$MNT/from/sub" "$MNT/to"
    cp -a "$WORK/tree/module-1" "$MNT/from/sub/"
    mv "$MNT/from/sub" "$MNT/to/"
    diff -r "$WORK/tree/module-1" "$MNT/to/sub/module-1"
    [ ! -e "$MNT/from/sub" ]
    mv "$MNT/to/sub/module-1" "$WORK/back"
    diff -r "$WORK/tree/module-1" "$WORK/back"
    mv "$WORK/back" "$MNT/from/back"
    diff -r "$WORK/tree/module-1" "$MNT/from/back"
}

remove_all() {
    rm -r "${MNT:?}"/*
    same "$(ls -A "$MNT")" ''
}

REAL_HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
make_tree
start_world
check "untar of $files files and diff -r" untar
check 'tar and compare' tar_again
check 'git init, add, commit, gc, fsck, clone' git_life
check 'cargo build' cargo_build
check 'make -j2 of a C program' c_build
check 'rsync -a, the second time copies nothing' rsync_twice
check 'sqlite3 with 1,000 transactions' sqlite
check 'sed -i and vim' editors
check 'find and du' find_and_du
check 'cp --sparse' sparse_copies
check 'mv across directories and file systems' moves
check 'rm -r of everything' remove_all
finish
