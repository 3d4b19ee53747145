# Blocks a thread in each of many system calls, some of which have a time limit, prints "ready", and
# then each call that ended in another way than without a scan. Arguments: the seconds of a limit,
# which is also when the others are woken, and a folder.
import ctypes, errno, fcntl, json, os, platform, select, signal, socket, struct, sys, threading, time

LIMIT, DIR = float(sys.argv[1]), sys.argv[2]
# A limit that is never reached.
LONG = 600
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
cases, kept = [], []


def call(number, *args):
    """The result of a system call, or its negative errno."""
    args = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = libc.syscall(ctypes.c_long(number), *args)
    return result if result >= 0 else -ctypes.get_errno()


def made(number, *args):
    """A system call that must succeed."""
    result = call(number, *args)
    if result < 0:
        raise OSError(-result, os.strerror(-result), str(number))
    return result


def timespec(seconds):
    return ctypes.create_string_buffer(struct.pack("qq", int(seconds), int(seconds % 1 * 1e9)))


def case(name, block, wake=None, result=0, most=None, known=False):
    """block() blocks until wake(thread), or for LIMIT seconds, and must then give this result; any
    success is 0. `most`: the most seconds that it may take. `known`: BUGS names it."""
    cases.append((name, block, wake, result, most, known))


def optional(define):
    """Some machines do not have these."""
    try:
        define()
    except OSError as err:
        print("%s: %s" % (define.__name__, err), file=sys.stderr)


def child(before):
    """A child that calls before(), and waits for a byte. Gives its pid, and what ends it."""
    (told, tell), (wait, end) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        before()
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.read(told, 1)
    return pid, lambda thread: os.write(end, b"x")


def interrupt(thread):
    """A signal with a handler ends the call by EINTR."""
    call(234, os.getpid(), thread, int(signal.SIGUSR1))


def buffer(size=64):
    made = ctypes.create_string_buffer(size)
    kept.append(made)
    return made


def sockets(limit=None):
    one, two = socket.socketpair()
    kept.extend([one, two])
    if limit:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            one.setsockopt(socket.SOL_SOCKET, option, struct.pack("qq", limit, 0))
    return one, two


def full(limit):
    """A socket into which nothing more can be sent."""
    one, two = sockets(limit)
    one.setblocking(False)
    try:
        while True:
            one.send(b"x" * 1024)
    except BlockingIOError:
        # settimeout of Python would make it O_NONBLOCK.
        fcntl.fcntl(one, fcntl.F_SETFL, fcntl.fcntl(one, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    two.setblocking(False)

    def drain(thread):
        try:
            while True:
                two.recv(1 << 16)
        except BlockingIOError:
            pass

    return one, drain


def listener(limit=None, backlog=5):
    made = socket.socket(socket.AF_UNIX)
    if limit:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", limit, 0))
    made.bind("")
    made.listen(backlog)
    kept.append(made)
    return made


def client(server):
    made = socket.socket(socket.AF_UNIX)
    kept.append(made)
    made.connect(server.getsockname())


def iovec(data):
    made = (ctypes.c_void_p * 2)(ctypes.addressof(data), ctypes.sizeof(data))
    kept.append(made)
    return made


def msghdr(data):
    made = (ctypes.c_void_p * 7)(0, 0, ctypes.addressof(iovec(data)), 1, 0, 0, 0)
    kept.append(made)
    return made


# Calls that the kernel makes again, and those that it resumes with the rest of their time.
def pipes():
    for name, number in (("read", 0), ("splice", 275)):
        out, into = os.pipe()
        _, other = os.pipe()
        args = {0: (buffer(), 1), 275: (None, other, None, 1, 0)}[number]
        case(name, lambda n=number, o=out, a=args: call(n, o, *a), lambda t, i=into: os.write(i, b"x"))
    out, into = os.pipe()
    poll = ctypes.create_string_buffer(struct.pack("ihh", out, 1, 0))
    case("poll", lambda: call(7, poll, 1, -1), lambda t: os.write(into, b"x"))
    case("ppoll", lambda: call(271, poll, 1, None, None, 8), lambda t: os.write(into, b"x"))
    bits = bytearray(128)
    bits[out // 8] |= 1 << out % 8
    bits = ctypes.create_string_buffer(bytes(bits))
    case("select", lambda: call(23, out + 1, bits, None, None, None), lambda t: os.write(into, b"x"))
    quiet, _ = os.pipe()
    quiet = ctypes.create_string_buffer(struct.pack("ihh", quiet, 1, 0))
    limit = int(LIMIT * 1000)
    case("poll, limit", lambda: call(7, quiet, 1, limit), most=LIMIT + 1)
    # What is left of this limit is the same after a stop.
    case("ppoll, limit", lambda: call(271, quiet, 1, timespec(LIMIT), None, 8))


def sleeps():
    case("nanosleep", lambda: call(35, timespec(LIMIT), None), most=LIMIT + 1)
    case("clock_nanosleep", lambda: call(230, 1, 0, timespec(LIMIT), None), most=LIMIT + 1)
    until = lambda: timespec(time.monotonic() + LIMIT)
    case("clock_nanosleep, absolute", lambda: call(230, 1, 1, until(), None), most=LIMIT + 1)
    case("pause", lambda: call(34), interrupt, -errno.EINTR)
    # The signals of other cases stay blocked.
    others = ctypes.create_string_buffer(struct.pack("Q", ~(1 << signal.SIGUSR1 - 1) & (1 << 64) - 1))
    case("sigsuspend", lambda: call(130, others, 8), interrupt, -errno.EINTR)


def futexes():
    word, other = buffer(4), buffer(4)
    case("futex", lambda: call(202, word, 128, 0, None), lambda t: call(202, word, 129, 9))
    expired = -errno.ETIMEDOUT
    case("futex, limit", lambda: call(202, other, 128, 0, timespec(LIMIT)), None, expired, LIMIT + 1)


def waits():
    pid, end = child(lambda: None)
    case("wait4", lambda p=pid: call(61, p, None, 0, None), end)
    pid, end = child(lambda: None)
    case("waitid", lambda p=pid: call(247, 1, p, None, 4, None), end)


def locks():
    path = os.path.join(DIR, "lock")
    new = lambda: os.open(path, os.O_RDWR | os.O_CREAT)
    one, two = new(), new()
    fcntl.flock(one, fcntl.LOCK_EX)
    case("flock", lambda: call(73, two, 2), lambda t: fcntl.flock(one, fcntl.LOCK_UN))
    lock = ctypes.create_string_buffer(struct.pack("hhxxxxqqi4x", 1, 0, 0, 0, 0))
    three = new()
    _, end = child(lambda: fcntl.lockf(new(), fcntl.LOCK_EX))
    case("F_SETLKW", lambda: call(72, three, 7, lock), end)


def fifo():
    path = os.path.join(DIR, "fifo").encode()
    os.mkfifo(path)
    opened = lambda thread: kept.append(os.open(path, os.O_WRONLY))
    case("open of a fifo", lambda: call(257, -100, path, 0, 0), opened)


def message_queue():
    name = ("fdkit-blocked-%d" % os.getpid()).encode()
    fd = made(240, name, os.O_CREAT | os.O_RDWR, 0o600, None)
    made(241, name)
    case("mq_timedreceive", lambda: call(243, fd, buffer(1 << 16), 1 << 16, None, None),
         lambda t: made(242, fd, b"x", 1, 0, None))
    other = made(240, name, os.O_CREAT | os.O_RDWR, 0o600, None)
    made(241, name)
    case("mq_timedreceive, limit",
         lambda: call(243, other, buffer(1 << 16), 1 << 16, None, timespec(time.time() + LIMIT)),
         None, -errno.ETIMEDOUT, LIMIT + 1)


def system_v():
    queue = made(68, 0, 0o600 | 0o1000)
    message = ctypes.create_string_buffer(struct.pack("q", 1) + b"x")

    def send(thread):
        made(69, queue, message, 1, 0)
        joined["msgrcv"].join()
        made(71, queue, 0, None)

    case("msgrcv", lambda: call(70, queue, buffer(), 1, 0, 0), send)
    for name, number, limit in (("semop", 65, 0), ("semtimedop", 220, LONG), ("semtimedop, limit", 220, LIMIT)):
        sem = made(64, 0, 1, 0o600 | 0o1000)
        take, give = (ctypes.create_string_buffer(struct.pack("Hhh", 0, by, 0)) for by in (-1, 1))
        args = [timespec(limit)] if limit else []

        def block(number=number, sem=sem, take=take, args=args):
            result = call(number, sem, take, 1, *args)
            made(66, sem, 0, 0, None)
            return result

        wake = lambda thread, sem=sem, give=give: made(65, sem, give, 1)
        if limit == LIMIT:
            case(name, block, None, -errno.EAGAIN)
        else:
            case(name, block, wake)


# Calls that end with EINTR unless the tracer sees to it.
def epolls():
    for number, name in ((232, "epoll_wait"), (281, "epoll_pwait"), (441, "epoll_pwait2")):
        for limit in (None, LONG, LIMIT):
            quiet, events = os.eventfd(0), select.epoll()
            kept.append(events)
            events.register(quiet, select.EPOLLIN)
            if number == 441:
                args = [None if limit is None else timespec(limit), None, 8]
            else:
                args = [-1 if limit is None else int(limit * 1000), None, 8]
            block = lambda n=number, e=events.fileno(), a=args: call(n, e, buffer(), 1, *a)
            wake = lambda thread, fd=quiet: os.eventfd_write(fd, 1)
            suffix = {None: "", LONG: ", long limit", LIMIT: ", limit"}[limit]
            case(name + suffix, block, None if limit == LIMIT else wake)


def signal_waits():
    for at, limit in enumerate((None, LONG, LIMIT)):
        number = signal.SIGRTMIN + 1 + at
        mask = ctypes.create_string_buffer(struct.pack("Q", 1 << number - 1))
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        block = lambda m=mask, l=limit: call(128, m, None, timespec(l) if l else None, 8)
        if limit == LIMIT:
            case("rt_sigtimedwait, limit", block, None, -errno.EAGAIN)
        else:
            case("rt_sigtimedwait" + (", long limit" if limit else ""), block,
                 lambda t, n=number: os.kill(os.getpid(), n))


def aio():
    for limit, number in ((None, 208), (LONG, 208), (LIMIT, 208), (None, 333)):
        context = ctypes.c_ulong(0)
        made(206, 1, ctypes.byref(context))
        quiet = os.eventfd(0)
        # IOCB_CMD_POLL for POLLIN.
        iocb = ctypes.create_string_buffer(struct.pack("QIIHhIQQqQII", 0, 0, 0, 5, 0, quiet, 1, 0, 0, 0, 0, 0))
        kept.append(iocb)
        made(209, context.value, 1, ctypes.byref(ctypes.c_void_p(ctypes.addressof(iocb))))
        args = [context.value, 1, 1, buffer(), timespec(limit) if limit else None]
        args += [None] if number == 333 else []
        block = lambda n=number, a=args: call(n, *a)
        wake = lambda thread, fd=quiet: os.eventfd_write(fd, 1)
        name = "io_getevents" if number == 208 else "io_pgetevents"
        suffix = {None: "", LONG: ", long limit", LIMIT: ", limit"}[limit]
        case(name + suffix, block, None if limit == LIMIT else wake)


def io_uring():
    for limit in (None, LIMIT):
        fd = made(425, 1, buffer(120))
        if limit:
            until = timespec(limit)
            kept.append(until)
            arg = ctypes.create_string_buffer(struct.pack("QIIQ", 0, 8, 0, ctypes.addressof(until)))
            case("io_uring_enter, limit", lambda f=fd, a=arg: call(426, f, 0, 1, 9, a, 24), None, -errno.ETIME)
        else:
            case("io_uring_enter", lambda f=fd: call(426, f, 0, 1, 1, None, 8), interrupt, -errno.EINTR)


def socket_calls():
    for limit in (None, LONG, int(LIMIT)):
        suffix = {None: "", LONG: ", long limit"}.get(limit, ", limit")
        expires = limit == int(LIMIT)
        result = -errno.EAGAIN if expires else 0
        for name, number in (("recvfrom", 45), ("recvmsg", 47), ("recvmmsg", 299), ("read of a socket", 0),
                             ("readv of a socket", 19), ("preadv2 of a socket", 327), ("splice of a socket", 275)):
            one, two = sockets(limit)
            data = buffer()
            _, into = os.pipe()
            header = msghdr(data)
            many = (ctypes.c_void_p * 8)(*header, 0)
            args = {45: (data, 1, 0, None, None), 47: (header, 0), 299: (many, 1, 0, None), 0: (data, 1),
                    19: (iovec(data), 1), 327: (iovec(data), 1, -1, -1, 0), 275: (None, into, None, 1, 0)}[number]
            block = lambda n=number, f=one.fileno(), a=args: call(n, f, *a)
            case(name + suffix, block, None if expires else lambda t, s=two: s.send(b"x"), result)
        for name, number in (("accept", 43), ("accept4", 288)):
            server = listener(limit)
            args = (None, None) if number == 43 else (None, None, 0)
            block = lambda n=number, f=server.fileno(), a=args: call(n, f, *a)
            case(name + suffix, block, None if expires else lambda t, s=server: client(s), result)
        regular = os.open(os.path.join(DIR, "data"), os.O_RDWR | os.O_CREAT)
        os.pwrite(regular, b"x" * 4096, 0)
        for name, number in (("sendto", 44), ("sendmsg", 46), ("sendmmsg", 307), ("write to a socket", 1),
                             ("writev to a socket", 20), ("pwritev2 to a socket", 328), ("sendfile", 40),
                             ("splice to a socket", 275)):
            one, drain = full(limit)
            data = buffer()
            header = msghdr(data)
            many = (ctypes.c_void_p * 8)(*header, 0)
            args = {44: (data, 1, 0, None, 0), 46: (header, 0), 307: (many, 1, 0), 1: (data, 1),
                    20: (iovec(data), 1), 328: (iovec(data), 1, -1, -1, 0), 40: (regular, None, 1),
                    275: (None, one.fileno(), None, 1, 0)}[number]
            source, into = os.pipe()
            os.write(into, b"x")
            fd = source if number == 275 else one.fileno()
            block = lambda n=number, f=fd, a=args: call(n, f, *a)
            case(name + suffix, block, None if expires else drain, result)
        server = listener(backlog=0)
        client(server)
        one = socket.socket(socket.AF_UNIX)
        kept.append(one)
        if limit:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("qq", limit, 0))
        name = server.getsockname()
        address = struct.pack("H", socket.AF_UNIX) + name
        block = lambda f=one.fileno(), a=address: call(42, f, a, len(a))
        case("connect" + suffix, block, None if expires else lambda t, s=server: kept.append(s.accept()), result)


# Calls that have done a part of their work.
def parts():
    out, into = os.pipe()
    size = fcntl.fcntl(into, 1032) + 4096
    data = buffer(size)

    def drain(thread):
        left = size
        while left > 0 and select.select([out], [], [], 1)[0]:
            left -= len(os.read(out, size))

    written = lambda: min(call(1, into, data, size) - size, 0)
    case("write to a full pipe", written, drain, known=True)
    one, two = sockets()
    two.send(b"x")
    whole = lambda: min(call(45, one.fileno(), buffer(), 2, 0x100, None, None) - 2, 0)
    case("recvfrom with MSG_WAITALL", whole, lambda t: two.send(b"x"), known=True)


if platform.machine() != "x86_64":
    print("the numbers of system calls are those of x86_64", file=sys.stderr)
    sys.exit(77)
signal.signal(signal.SIGUSR1, lambda number, frame: None)
waits()
locks()
pipes()
sleeps()
futexes()
fifo()
optional(message_queue)
optional(system_v)
epolls()
signal_waits()
optional(aio)
optional(io_uring)
socket_calls()
parts()

ended, ids, joined = {}, {}, {}


def run(name, block):
    ids[name] = threading.get_native_id()
    began = time.monotonic()
    result = block()
    ended[name] = (min(result, 0), time.monotonic() - began)


# The main thread has no handler to run meanwhile.
for name, block, *_ in cases:
    joined[name] = threading.Thread(target=run, args=(name, block), daemon=True)
    joined[name].start()


def asleep(name):
    with open("/proc/self/task/%d/stat" % ids[name]) as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] == "S"


began = time.monotonic()
while not all(name in ended or name in ids and asleep(name) for name in joined):
    time.sleep(0.05)
print("ready", len(cases), flush=True)
time.sleep(max(0, began + LIMIT - time.monotonic()))
# Python runs handlers in the main thread alone, but all threads get the signals.
for name, block, wake, *_ in cases:
    if wake and name not in ended:
        wake(ids[name])
for thread in joined.values():
    thread.join(max(0, began + 3 * LIMIT - time.monotonic()))
odd = []
for name, block, wake, result, most, known in cases:
    got = ended.get(name)
    # A wake comes a little after the limit of the first.
    least = LIMIT - 0.5 if wake else LIMIT
    good = got and got[0] == result and least <= got[1] and (most is None or got[1] <= most)
    if not good:
        odd.append([name, known, "expected %d after %s s or more: %s" % (result, least, got)])
print(json.dumps(odd), flush=True)
os._exit(0)
