"""Random socket calls on both ends of one TCP connection, in lockstep, and what they answer. For HERE and FAR see scenarios.py.

exercise.py SEED STEPS: prints one line for each step. The script of calls depends on the seed alone, and each call is made
only when what plain TCP answers is certain, so that two runs - on plain TCP and on the link - must print the same. At the end
one of the two ends, in one of several ways: killed between two calls, or in the middle of one.
"""

import array, ctypes, fcntl, json, os, random, select, signal, socket, struct, sys, tempfile, termios, time

LIMIT = 20_000  # bytes under way at most, and one write of up to 30,000 more: what every TCP takes without a reader


PATTERN = bytes(i * 131 >> 3 & 0xFF for i in range(2048))  # begins again with itself


def pattern(start, count):
    start %= len(PATTERN)
    return (PATTERN * (count // len(PATTERN) + 2))[start : start + count]


class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Message(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = [
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint), ("pieces", ctypes.POINTER(Piece)), ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_size_t), ("length", ctypes.c_uint),
    ]


LIBC = ctypes.CDLL(None, use_errno=True)
WAIT_FOR_ONE = 0x10000


def messages(buffers):
    """A list of messages, a buffer in two pieces each."""
    made = (Message * len(buffers))()
    for message, buffer in zip(made, buffers):
        base, half = ctypes.addressof(buffer), len(buffer) // 2
        message.pieces = (Piece * 2)((base, half), (base + half, len(buffer) - half))
        message.count = 2
    return made


def counted(result):
    """The answer of a call of the C library."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


class Peer:
    """One end, in a process of its own, that makes calls as told."""

    def __init__(self, sock):
        self.socks = [sock]
        self.poll = select.poll()
        self.level = self.edge = None
        self.file = tempfile.TemporaryFile()
        self.file.write(pattern(0, 4096))
        self.file.flush()

    def call(self, name, *args):
        try:
            return getattr(self, "do_" + name)(*args)
        except OSError as error:
            # A connection that was reset tells so at one call or the next.
            return ["error", error.errno]

    def sock(self):
        return self.socks[-1]

    def do_send(self, way, start, count, flags):
        data = pattern(start, count)
        sock = self.sock()
        if way == "send":
            return sock.send(data, flags)
        if way == "write":
            return os.write(sock.fileno(), data)
        if way == "writev":
            return os.writev(sock.fileno(), [data[: count // 3], b"", data[count // 3 :]])
        if way == "sendmsg":
            return sock.sendmsg([data[: count // 2], data[count // 2 :]], [], flags)
        sent = 0
        while sent < count:
            sent += os.sendfile(sock.fileno(), self.file.fileno(), sent, count - sent)
        return sent

    def do_recv(self, way, count, flags):
        sock = self.sock()
        if way == "recv":
            data = sock.recv(count, flags)
        elif way == "read":
            data = os.read(sock.fileno(), count)
        elif way == "readv":
            parts = [bytearray(count // 2), bytearray(count - count // 2)]
            got = os.readv(sock.fileno(), parts)
            data = b"".join(parts)[:got]
        else:
            data, control, flags, _ = sock.recvmsg(count, 64, flags)
            if control or flags:
                return ["control", len(control), flags]
        return [len(data), data.hex() if len(data) < 40 else hash_of(data)]

    def do_timed(self, count, millis):
        """A read that waits so long at most."""
        self.sock().setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, millis * 1000))
        try:
            return self.do_recv("recv", count, 0)
        finally:
            self.sock().setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))

    def do_drop(self, count):
        """A read that throws away what it reads."""
        return self.sock().recv_into(bytearray(count), 0, socket.MSG_TRUNC)

    def do_sendmmsg(self, start, counts):
        """Several messages with one call."""
        buffers = []
        for count in counts:
            buffers.append((ctypes.c_char * count).from_buffer(bytearray(pattern(start, count))))
            start += count
        made = messages(buffers)
        done = counted(LIBC.sendmmsg(self.sock().fileno(), made, len(made), 0))
        return [message.length for message in made[:done]]

    def do_recvmmsg(self, counts, micros):
        """As many messages as there are, in that time if it is one."""
        buffers = [(ctypes.c_char * count)() for count in counts]
        made = messages(buffers)
        time = None if micros is None else (ctypes.c_long * 2)(0, micros * 1000)
        done = counted(LIBC.recvmmsg(self.sock().fileno(), made, len(made), WAIT_FOR_ONE, time))
        lengths = [message.length for message in made[:done]]
        data = b"".join(buffer.raw[:length] for buffer, length in zip(buffers, lengths))
        return [lengths, hash_of(data), time is None or time[0] == 0 and time[1] <= micros * 1000]

    def do_step_back(self, way, start, count):
        """A call with which the connection leaves the ring for good; it sends so many bytes."""
        if way == "lowat":
            for value in (2, 1):
                self.sock().setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, value)
            return self.sock().send(pattern(start, count))
        out, into = os.pipe()
        os.write(into, pattern(start, count))
        moved = 0
        while moved < count:
            moved += os.splice(out, self.sock().fileno(), count - moved)
        os.close(out)
        os.close(into)
        return moved

    def do_dup2(self):
        """The first number becomes a copy of the last one."""
        os.dup2(self.socks[-1].fileno(), self.socks[0].fileno())
        return 0

    def do_linger(self):
        """What closes it resets it."""
        self.sock().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return 0

    def do_stream(self, start, count):
        """Writes so many bytes, or until it cannot: how it ended."""
        try:
            self.sock().sendall(pattern(start, count))
            return "all"
        except OSError:
            return "cut"

    def do_verify(self, start, most):
        """Reads until so many bytes have come, or the end: whether they were right, and how it ended."""
        place = start
        while place < start + most:
            try:
                data = self.sock().recv(min(50_000, start + most - place))
            except OSError as error:
                return ["right", "error", error.errno]
            if not data:
                return ["right", "end"]
            if data != pattern(place, len(data)):
                return ["wrong", place - start]
            place += len(data)
        return ["right", "more"]

    def do_nonblocking(self, count):
        self.sock().setblocking(False)
        try:
            return self.do_recv("recv", count, 0)
        finally:
            self.sock().setblocking(True)

    def do_ready(self, wait):
        poll = select.poll()
        poll.register(self.sock(), select.POLLIN | select.POLLOUT | select.POLLRDHUP)
        if wait:  # for the input, which may be a moment away; output is always there
            only = select.poll()
            only.register(self.sock(), select.POLLIN)
            only.poll(2000)
        return [event for _, event in poll.poll(0)]

    def do_select(self, wait):
        readable, writable, _ = select.select([self.sock()], [self.sock()], [], 0)
        if wait:
            readable, _, _ = select.select([self.sock()], [], [], 2)
        return [len(readable), len(writable)]

    def do_level(self, wait):
        if not self.level:
            self.level = select.epoll()
            self.level.register(self.socks[0], select.EPOLLIN | select.EPOLLRDHUP)
        return [event for _, event in self.level.poll(2 if wait else 0)]

    def do_edge(self, wait):
        if not self.edge:
            self.edge = select.epoll()
            self.edge.register(self.socks[0], select.EPOLLIN | select.EPOLLET)
        return [event for _, event in self.edge.poll(2 if wait else 0)]

    def do_unread(self):
        number = array.array("i", [0])
        fcntl.ioctl(self.sock().fileno(), termios.FIONREAD, number)
        return number[0]

    def do_dup(self):
        self.socks.append(self.sock().dup())
        return len(self.socks)

    def do_undup(self):
        self.socks.pop().close()
        return len(self.socks)

    def do_option(self, value):
        self.sock().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, value)
        return self.sock().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def do_fork(self, call):
        """A child makes the call on the socket that it inherits."""
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(into, json.dumps(self.call(*call)).encode())
            os._exit(0)
        os.close(into)
        answer = os.read(out, 65536)
        os.close(out)
        os.waitpid(child, 0)
        return json.loads(answer)

    def do_shutdown(self, how):
        self.sock().shutdown(how)
        return 0

    def do_close(self):
        for epoll in (self.level, self.edge):
            if epoll:
                epoll.close()
        for sock in self.socks:
            sock.close()
        return 0


def hash_of(data):
    number = 0
    for byte in data:
        number = (number * 31 + byte) & 0xFFFFFFFF
    return number


def serve(peer, commands, answers):
    with os.fdopen(commands, "rb") as lines:
        for line in lines:
            os.write(answers, json.dumps(peer.call(*json.loads(line))).encode() + b"\n")
    os._exit(0)


class Side:
    """How the script sees an end."""

    def __init__(self, sock, others, folder=None):
        to_child, self.commands = os.pipe()
        self.answers, from_child = os.pipe()
        out = to_child, from_child
        self.told_by = to_child
        self.pid = os.fork()
        if self.pid == 0:
            for fd in [self.commands, self.answers] + others:
                os.close(fd)
            if folder:
                os.chdir(folder)
            serve(Peer(sock), *out)
        for fd in out:
            os.close(fd)
        self.lines = os.fdopen(self.answers, "rb")
        self.sent = 0  # bytes written
        self.read = 0  # bytes taken by the other end
        self.dups = 0
        self.shut = self.read_shut = self.dead = False

    def call(self, *call):
        self.begin(*call)
        return self.answer()

    def begin(self, *call):
        """Lets it make a call."""
        os.write(self.commands, json.dumps(call).encode() + b"\n")

    def answer(self):
        """What the call answered."""
        return json.loads(self.lines.readline() or '"gone"')

    def until_it_sleeps(self):
        """Waits until it sleeps in the call that it has begun, and not for the next one."""
        for _ in range(400):
            with open(f"/proc/{self.pid}/syscall") as call:
                words = call.read().split()
            if words[0] != "running" and words[:2] != ["0", hex(self.told_by)]:
                break
            time.sleep(0.005)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def choose(rng, me, other, in_child=False):
    """A call that has one certain answer, and what it does to the model. A child makes none that changes its parent's descriptors
    or sets, for its own are gone with it."""
    waiting = other.sent - other.read
    ended = other.shut or other.dead
    choices = ["ready", "select", "unread", "option"]
    if not me.shut and not other.dead and me.sent - me.read < LIMIT:
        choices += ["send"] * 6
    if waiting or ended or me.read_shut:
        choices += ["recv"] * 6 + ["recvmmsg"]
    choices += ["nonblocking", "timed"]
    if "send" in choices:
        choices += ["sendmmsg"]
    if not in_child:
        choices += ["level", "dup", "undup", "dup2", "fork"]
        if "send" in choices and not other.read_shut:
            choices += ["waitall"] * 2
        # Bytes that are unread would have to be taken back by a process that waits for its next line.
        if "send" in choices and not waiting and rng.random() < 0.06:
            choices += ["step_back"] * 4
        if rng.random() < 0.02:
            choices += ["shut_read"] * 4
    name = rng.choice(choices)
    if name == "sendmmsg":
        counts = [rng.randint(1, rng.choice([8, 200, 3000])) for _ in range(rng.randint(1, 4))]
        start = me.sent
        me.sent += sum(counts)
        return ["sendmmsg", start, counts]
    if name == "recvmmsg":
        counts = [rng.randint(1, rng.choice([8, 200, 3000])) for _ in range(rng.randint(1, 4))]
        micros = rng.choice([None, 0, 900_000])
        taken = counts[0] if micros == 0 else sum(counts)
        other.read += min(taken, waiting)
        return ["recvmmsg", counts, micros]
    if name == "waitall":
        counts = [rng.randint(1, rng.choice([8, 200, 6000])) for _ in range(rng.randint(1, 4))]
        start, unread = me.sent, me.sent - me.read
        me.sent += sum(counts)
        me.read = me.sent
        return ["waitall", start, counts, unread + sum(counts)]
    if name == "step_back":
        count = rng.randint(1, 3000)
        start = me.sent
        me.sent += count
        return ["step_back", rng.choice(["lowat", "splice"]), start, count]
    if name == "shut_read":
        me.read_shut = True
        return ["shutdown", socket.SHUT_RD]
    if name == "dup2":
        return ["dup2"] if me.dups else ["unread"]
    if name == "send":
        most = rng.choice([1, 8, 200, 4000, 30_000])
        count = rng.randint(1, min(most, LIMIT))
        way = rng.choice(["send", "write", "writev", "sendmsg", "sendfile"])
        if way == "sendfile":
            count = min(count, 4096)
        flags = rng.choice([0, 0, socket.MSG_MORE if count > 2000 else 0, socket.MSG_DONTWAIT])
        start = 0 if way == "sendfile" else me.sent
        me.sent += count
        return ["send", way, start, count, int(flags) & ~int(socket.MSG_MORE)]
    if name == "recv":
        count = rng.randint(1, rng.choice([1, 10, 300, 5000, 100_000]))
        flags = rng.choice([0, 0, 0, socket.MSG_PEEK, socket.MSG_WAITALL])
        if flags == socket.MSG_WAITALL and count > waiting and not ended and not me.read_shut:
            flags = 0
        way = rng.choice(["recv", "read", "readv", "recvmsg"])
        if way in ("read", "readv"):
            flags = 0
        if not flags & socket.MSG_PEEK:
            other.read += min(count, waiting)
        return ["recv", way, count, int(flags)]
    if name == "recv" and waiting and rng.random() < 0.1:
        count = rng.randint(1, 3000)
        other.read += min(count, waiting)
        return ["drop", count]
    if name == "nonblocking" or name == "timed":
        count = rng.randint(1, 3000)
        other.read += min(count, waiting)
        # Nothing there: a moment; something: long enough for it to come.
        return ["nonblocking", count] if name == "nonblocking" else ["timed", count, 900 if waiting or ended else 20]
    if name in ("ready", "select", "level"):
        return [name, bool(waiting or ended or me.read_shut)]
    if name == "dup" and me.dups < 3:
        me.dups += 1
        return ["dup"]
    if name == "undup" and me.dups:
        me.dups -= 1
        return ["undup"]
    if name == "fork":
        return ["fork", choose(rng, me, other, in_child=True)]
    if name == "option":
        return ["option", 1]
    return ["unread"]


def await_bytes(me, waiting):
    """Until all that the other end has sent is there to be read, or two seconds."""
    for _ in range(400):
        if me.call("unread") == waiting:
            return
        time.sleep(0.005)


def in_pieces(me, other, start, counts, total):
    """One end waits for all of several pieces in one call, while the other one sends them."""
    other.begin("recv", "recv", total, int(socket.MSG_WAITALL))
    for count in counts:
        me.call("send", "send", start, count, 0)
        start += count
    return other.answer()


HOME = []


def enter(back, namespace):
    """Sockets that are made from here on belong to another network, or, without one, to ours again."""
    if namespace:
        HOME.append(os.open(back, os.O_RDONLY | os.O_CLOEXEC))
        file = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    else:
        file = HOME.pop()
    assert ctypes.CDLL(None).setns(file, 0x40000000) == 0
    os.close(file)


def main():
    seed, steps = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    listener = socket.create_server((os.environ.get("HERE", "127.0.0.1"), 0))
    far, folder = os.environ.get("FAR"), None
    if far:
        namespace, folder = far.split(":")
        enter("/proc/self/ns/net", namespace)
    client = socket.create_connection(listener.getsockname())
    if far:
        enter(namespace, None)
    server, _ = listener.accept()
    listener.close()
    for sock in (client, server):  # or TCP keeps small pieces back for a while, by its own clock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one = Side(client, [server.fileno()], folder)
    server_only = [one.commands, one.answers]
    client.close()
    two = Side(server, server_only)
    server.close()
    # The first forks happened with both ends open here: both are shared no more from now on.
    sides = [one, two]
    for number in range(steps):
        index = rng.randint(0, 1)
        me, other = sides[index], sides[1 - index]
        waiting = other.sent - other.read
        call = choose(rng, me, other)
        # FIONREAD and readiness are asked when everything is there.
        late = ("unread", "nonblocking", "recvmmsg")
        if call[0] in late or call[0] == "fork" and call[1][0] in late:
            if waiting or call[0] == "nonblocking":
                me.call("ready", bool(waiting))
        if far:  # nor is what was sent there at once
            await_bytes(me, waiting)
        answer = in_pieces(me, other, *call[1:]) if call[0] == "waitall" else me.call(*call)
        print(number, index, json.dumps(call), json.dumps(answer), flush=True)
    end(rng, sides)


def drain(side, other):
    """Reads until the end; how many bytes, and how it ended."""
    total = 0
    while True:
        answer = side.call("recv", "recv", 65536, 0)
        if answer[0] in ("error", 0):
            return total, answer[0] if answer[0] == 0 else answer
        total += answer[0]


MUCH = 16_000_000  # more than all queues between two ends take


def take_all(me, other):
    """Nothing is unread at this end: the kernel would send a reset for that when it is killed."""
    while other.sent > other.read:
        other.read += me.call("recv", "recv", other.sent - other.read, 0)[0]


def end_in_call(rng, me, other):
    """One is killed while at least one of the two is in the middle of a call."""
    take_all(me, other)
    take_all(other, me)
    way = rng.choice(["reader", "both read", "poller", "writer", "writer to one who reads"])
    some = rng.choice([1, 5_000, 300_000, 2_000_000])
    if way == "both read":
        me.begin("recv", "recv", 100, 0)
        me.until_it_sleeps()
    if way in ("reader", "both read"):
        other.begin("recv", "recv", 100, 0)
        other.until_it_sleeps()
        me.kill()
        print(way, other.answer(), flush=True)
    elif way == "poller":
        other.begin("select", True)
        other.until_it_sleeps()
        me.kill()
        print(way, other.answer(), drain(other, me), flush=True)
    elif way == "writer":
        # What it had written arrives, whole and in order, and then the end.
        me.begin("stream", me.sent, MUCH)
        first = other.call("verify", me.sent, some)
        me.kill()
        print(way, first, other.call("verify", me.sent + some, MUCH), flush=True)
    else:
        other.begin("stream", other.sent, MUCH)
        print(way, me.call("verify", other.sent, some), flush=True)
        me.kill()
        print(other.answer(), flush=True)


def end(rng, sides):
    """One of the ways in which connections end, and what the other end sees of it."""
    index = rng.randint(0, 1)
    me, other = sides[index], sides[1 - index]
    unread = other.sent > other.read
    way = rng.choice(["shutdown", "close", "kill", "exit", "linger", "shutdown and exit", "in a call", "in a call"])
    if way in ("shutdown", "in a call") and (me.read_shut or other.read_shut):
        # Who has shut its reading answers what comes after its end with a reset, and does not wait for the end.
        way = "close"
    if way == "in a call":
        end_in_call(rng, me, other)
    elif way == "shutdown":
        print("shutdown", me.call("shutdown", socket.SHUT_WR), flush=True)
        print("drain", drain(other, me), other.call("ready", True), flush=True)
        print("reply", other.call("send", "send", other.sent, 500, 0), flush=True)
        print("shutdown", other.call("shutdown", socket.SHUT_WR), flush=True)
        print("drain", drain(me, other), flush=True)
    elif way == "close":
        print("close", me.call("close"), flush=True)
    elif way == "linger":
        # What has not arrived is not sent any more.
        await_bytes(other, me.sent - me.read)
        print("linger", me.call("linger"), me.call("close"), flush=True)
    elif way == "kill":
        me.kill()
    else:
        if way == "shutdown and exit":
            print("shutdown", me.call("shutdown", socket.SHUT_WR), flush=True)
        os.close(me.commands)
        os.waitpid(me.pid, 0)
    if way not in ("shutdown", "in a call"):
        if other.read_shut:
            await_bytes(other, me.sent - me.read)
        total, ended = drain(other, me)
        print(way, "unread" if unread else "all read", total, flush=True)
        if not other.read_shut:  # who has shut its reading meets the end, or the error before that has come
            print(ended, flush=True)
            if ended:  # a reset: nothing can be written any more
                print(other.call("recv", "recv", 10, 0), other.call("send", "send", 0, 10, 0), flush=True)
    for side in sides:
        try:
            os.close(side.commands)
        except OSError:
            pass
    for side in sides:
        try:
            os.waitpid(side.pid, 0)
        except ChildProcessError:
            pass


main()
