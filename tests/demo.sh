#!/bin/sh
# Shows the whole pipeline on a real program. A shell has a file, a pipe with data and an unlinked
# file open. Its descriptors are scanned, the shell is ended, and the descriptors are restored in
# a new shell, which checks the contents.
# FDKIT_BINDIR names the directory of tools that are built already.
set -eu
if [ -n "${FDKIT_BINDIR:-}" ]; then
    bin=$(cd "$FDKIT_BINDIR" && pwd)
else
    cd "$(dirname "$0")/.."
    cargo build --release --quiet
    bin=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
fi
PATH=$bin:$PATH
dir=$(mktemp -d)
trap 'rm -rf "$dir"; kill "$pid" 2>/dev/null || :' EXIT
cd "$dir"
printf 'first line\nsecond line\n' >notes
# Descriptor 3 is a file that was read up to its second line, 4 is an unlinked file, and 5 and 6 are
# the ends of one pipe.
: | sh -c '
    exec 5</proc/self/fd/0 6>/proc/self/fd/0 </dev/null >/dev/null 2>&1 3<notes 4<>scratch
    rm scratch
    printf "only in memory\n" >&4
    printf "still in the pipe\n" >&6
    dd bs=11 count=1 <&3
    : >ready
    exec sleep 1000' &
pid=$!
while [ ! -e ready ]; do sleep 0.1; done
while [ "$(cat /proc/$pid/comm)" != sleep ]; do sleep 0.1; done

echo "\$ fdscan --data -F 0-6 $pid | fdimg write demo.fdi"
fdscan --data -F 0-6 "$pid" | fdimg write demo.fdi
echo "\$ fdimg show demo.fdi"
fdimg show demo.fdi
kill "$pid"
wait "$pid" 2>/dev/null || :
echo "\$ fdrestore -i demo.fdi --inherit 1,2 -- sh -c '...'"
fdrestore -i demo.fdi --inherit 1,2 -- sh -c '
    read -r file <&3
    pipe=$(dd bs=99 count=1 <&5 2>/dev/null)
    gone=$(cat /proc/self/fd/4)
    echo "file:     $file"
    echo "pipe:     $pipe"
    echo "unlinked: $gone ($(readlink /proc/self/fd/4))"
    [ "$file" = "second line" ] && [ "$pipe" = "still in the pipe" ] && [ "$gone" = "only in memory" ]'
echo "All contents were restored."
