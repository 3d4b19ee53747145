#!/bin/sh
# Makes minor-1.fdi and minor-1.json, which have what minor version 1 of the format added. Run as root from
# the root of the repository, with the tools in PATH:
#
#     cargo build --release && PATH=$PWD/target/release:$PATH unshare --uts tests/images/minor-1.sh
set -eu
out=$PWD/tests/images/minor-1
dir=/var/tmp/fdkit-kept
export SOURCE_DATE_EPOCH=1796000000
hostname kept.example
rm -rf $dir
mkdir $dir
cd $dir
python3 -c '
import ctypes, os, socket, threading, time
libc = ctypes.CDLL(None)
def place(s, number):
    os.dup2(s.fileno(), number); s.close()
def unix(): return socket.socket(socket.AF_UNIX)
# Bound by a name that does not lead to the file any more (`file`), with a client that waits to be accepted
# (`waits`, `clients`).
listener = unix(); listener.bind("old"); listener.listen(5); os.rename("old", "new")
client = unix(); client.connect("new")
place(listener, 30); place(client, 31)
# A socket of another network namespace than its process (`netns`).
def away():
    libc.unshare(0x40000000)
    place(unix(), 32)
thread = threading.Thread(target=away); thread.start(); thread.join()
# A thread with a table of its own (`tgid`).
def own():
    libc.unshare(0x400)
    os.dup2(0, 77)
    ready.set()
    time.sleep(1000)
ready = threading.Event()
threading.Thread(target=own, daemon=True).start()
ready.wait()
print(os.getpid(), flush=True)
time.sleep(1000)
' </dev/null >pid 2>/dev/null &
trap 'kill $!; rm -rf $dir' EXIT
while ! [ -s pid ]; do sleep 0.1; done
# No process has this id: the highest one is 4194303 (`missing`).
fdscan -F 30-77 -o "$out.fdi" "$(cat pid)" 4194304 || [ $? = 1 ]
fdimg show -J "$out.fdi" >"$out.json"
