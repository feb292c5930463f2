"""A connection with some traffic that then rests, after a step back if a word says so: resting.py WORD. Prints `ready`; for
each line of its input there is more traffic; with "leave", after a step back. With a word for a way of waiting, both ends wait for bytes or room that do not come, and how
that ends is printed: the error here, and 3 if there was one at the other end too."""

import ctypes, errno, json, os, select, socket, struct, sys, time

LIBC = ctypes.CDLL(None, use_errno=True)
listener = socket.create_server((os.environ.get("HERE", "127.0.0.1"), 0))
address = listener.getsockname()
child = os.fork()
if child == 0:
    listener.close()
    if other := os.environ.get("OTHER_BROKER"):
        os.environ["SKEIN_LINK_BROKER"] = other
        os.environ.pop("OTHER_BROKER")
        code = "import socket,sys\n" + "s=socket.create_connection(('127.0.0.1',%d))\n" % address[1]
        code += "while d:=s.recv(100): s.sendall(d)\n"
        os.execv(sys.executable, [sys.executable, "-c", code])
    if far := os.environ.get("FAR"):
        namespace, folder = far.split(":")
        assert LIBC.setns(os.open(namespace, os.O_RDONLY), 0x40000000) == 0
        os.chdir(folder)
    sock = socket.create_connection(address)
    try:
        while data := sock.recv(1000):
            sock.sendall(data)
    except ConnectionError:
        os._exit(3)
    os._exit(0)
sock, _ = listener.accept()
listener.close()


def traffic(rounds):
    for _ in range(rounds):
        sock.sendall(b"x" * 100)
        left = 100
        while left:
            left -= len(sock.recv(left))


def is_on_ring():
    """Whether the broker says that both directions are."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
        asker.connect(os.environ["SKEIN_LINK_BROKER"])
        asker.send(b"SkLs\x02".ljust(16, b"\0"))
        ours = "%s:%d" % address
        while packet := asker.recv(4096):
            found = json.loads(packet)
            if ours in (found["low"], found["high"]):
                return min(found["ring_bytes"]) > 2000
    return False


def polled():
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll.poll()


def polled_by_epoll():
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN)
    return poll.poll()


def written():
    while True:  # until all that there is between the two ends is full
        sock.sendall(b"x" * 1000)


WAYS = {
    "read": lambda: None,
    "limited": lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 60, 0)),
    "write": written,
    "poll": polled,
    "select": lambda: select.select([sock], [], []),
    "epoll": polled_by_epoll,
    "timeout": lambda: sock.settimeout(60),
}

traffic(200)
if "FAR" in os.environ and "SKEIN_LINK_BROKER" in os.environ:
    # Agreeing with another host takes a few milliseconds, on a busy machine seconds; without its broker it never happens.
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not is_on_ring():
        traffic(50)
word = sys.argv[1]
if word == "stdio":
    LIBC.fdopen.restype = ctypes.c_void_p
    LIBC.fdopen(os.dup(sock.fileno()), b"w")
elif word == "option":
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2)
elif word == "sandbox":
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    LIBC.prctl(38, 1, 0, 0, 0)
    LIBC.prctl(22, 2, ctypes.c_char_p(struct.pack("HxxxxxxP", 1, ctypes.addressof(allow))))
elif word == "uring":
    LIBC.syscall(425, 0, 0)
elif word == "urgent":
    sock.send(b"!", socket.MSG_OOB)
elif word == "passed":
    one, other = socket.socketpair()
    socket.send_fds(one, [b"x"], [sock.fileno()])
print("ready", flush=True)
if word in WAYS:
    try:
        WAYS[word]()
        end = str(sock.recv(1))
    except OSError as error:
        end = errno.errorcode.get(error.errno, str(error))
    print(end, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit(0)
for line in sys.stdin:
    if line == "leave\n":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 2)
    traffic(200)
sock.shutdown(socket.SHUT_RDWR)  # for all descriptors of it
sock.close()
os.waitpid(child, 0)
