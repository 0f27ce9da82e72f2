#!/bin/bash
# scripts/start and scripts/stop, as a new user runs them.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

WORK=$(mktemp -d "${LARDER_TEST_TMP:-${TMPDIR:-/tmp}}/larder-start.XXXXXX")
export LARDER_STATE=$WORK/state
clean_up() {
    local status=$?
    trap - EXIT
    "$ROOT/scripts/stop" >/dev/null || true
    rm -rf --one-file-system "$WORK"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# expect TEXT COMMAND...: the command must succeed and say the text.
expect() {
    local text=$1 out
    shift
    out=$("$@" 2>&1) || die "$*: $out"
    [[ $out == *"$text"* ]] || die "$*: said nothing of '$text': $out"
}

refused() {
    if out=$("$@" 2>&1); then die "$* should have been refused: $out"; fi
}

start=$ROOT/scripts/start stop=$ROOT/scripts/stop
expect "Mounted at $WORK/one (nfs mode)" "$start" "$WORK/one"
echo kept >"$WORK/one/file"
say "ok - start serves and mounts"
expect "Mounted already" "$start" "$WORK/one"
refused "$start" --mode direct "$WORK/one"
# shellcheck disable=SC2009  # a process of this mount, and no other's
kill -KILL "$(ps -eo pid=,args= | awk -v dir="$WORK/one" '/mount --serve/ && $NF == dir {print $1}')"
expect "mounting anew" "$start" "$WORK/one"
[ "$(cat "$WORK/one/file")" = kept ] || die "the new mount does not show the file"
expect "Mounted at $WORK/two (direct mode)" "$start" --mode direct "$WORK/two"
[ "$(cat "$WORK/two/file")" = kept ] || die "the second mount does not show the file"
expect "Mounted at $WORK/cached (afs mode)" "$start" --mode afs "$WORK/cached"
[ "$(cat "$WORK/cached/file")" = kept ] || die "the third mount does not show the file"
say "ok - start again adds what is missing"
refused "$start" --mode none "$WORK/three"
refused "$start" --store "$WORK/elsewhere" "$WORK/three"
refused "$start" "$ROOT"
refused "$start" "$(dirname "$ROOT")"
refused "$start" "$LARDER_STATE/store/mnt"
say "ok - what cannot be is refused"
expect "keeps running" "$stop" "$WORK/two"
expect "The server has ended" "$stop"
expect "No server is running" "$stop"
if is_mounted "$WORK/one"; then die "still mounted"; fi
say "ok - stop unmounts and ends the server"
expect "Mounted at" "$start" "$WORK/one"
[ "$(cat "$WORK/one/file")" = kept ] || die "the file is gone after a restart"
expect "The server has ended" "$stop"
say "ok - the files stay"
