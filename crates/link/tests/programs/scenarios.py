"""Hard cases for a library between a program and its sockets. scenarios.py NAME prints what the program saw; plain TCP and the
link must print the same. Each begins with enough traffic for a connection to be on the ring.

HERE and FAR in the environment (an address of this host; the other host's network namespace and folder) put the child on
another host.
"""

import array, ctypes, errno, fcntl, hashlib, mmap, os, select, signal, socket, struct, subprocess, sys, threading, time

LIBC = ctypes.CDLL(None, use_errno=True)


HERE = os.environ.get("HERE", "127.0.0.1")


def go_far():
    """To the other host, if there is one: its network, and the folder where its broker listens."""
    if far := os.environ.get("FAR"):
        namespace, folder = far.split(":")
        file = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        assert LIBC.setns(file, 0x40000000) == 0
        os.close(file)
        os.chdir(folder)


def say(*words):
    print(*words, flush=True)


def outcome(call, *args):
    try:
        result = call(*args)
        return result if not isinstance(result, bytes) else result[:40]
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else str(error)


def recv_exactly(sock, count):
    parts = []
    while count:
        data = sock.recv(min(count, 1 << 20))
        if not data:
            break
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def recv_all(sock):
    digest, count = hashlib.sha256(), 0
    try:
        while data := sock.recv(1 << 18):
            digest.update(data)
            count += len(data)
    except OSError as error:
        return count, digest.hexdigest()[:16], errno.errorcode[error.errno]
    return count, digest.hexdigest()[:16], "end"


def stream(seed, count):
    return (hashlib.sha256(str(seed).encode()).digest() * (count // 32 + 1))[:count]


def warm(sock, first):
    far = "FAR" in os.environ
    for number in range(600 if far else 40):
        if far and first and number >= 500:
            time.sleep(0.001)  # the nodes agree meanwhile, however busy the host is
        if first:
            sock.sendall(b"%04d" % number * 50)
        assert recv_exactly(sock, 200) == b"%04d" % number * 50
        if not first:
            sock.sendall(b"%04d" % number * 50)


def pair(child):
    """Runs child(sock) in a process of its own; the parent's end and the child's pid."""
    listener = socket.create_server((HERE, 0))
    pid = os.fork()
    if pid == 0:
        address = listener.getsockname()
        listener.close()
        go_far()
        sock = socket.create_connection(address)
        warm(sock, True)
        try:
            child(sock)
        finally:
            sys.stdout.flush()
            os._exit(0)
    sock, _ = listener.accept()
    listener.close()
    warm(sock, False)
    return sock, pid


def bulk():
    """Both directions at once, more than any buffer holds."""
    def both(sock, seed):
        writer = threading.Thread(target=lambda: (sock.sendall(stream(seed, 30_000_000)), sock.shutdown(socket.SHUT_WR)))
        writer.start()
        answer = recv_all(sock)
        writer.join()
        return answer

    sock, pid = pair(lambda sock: both(sock, 1))
    say(both(sock, 2))
    os.waitpid(pid, 0)


def slow_reader():
    """A writer that does not wait, told by edges when it may write; a reader that dawdles."""
    def child(sock):
        time.sleep(0.2)
        say(recv_all(sock))

    sock, pid = pair(child)
    sock.setblocking(False)
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    data, sent, blocked = memoryview(stream(3, 12_000_000)), 0, False
    while sent < len(data):
        try:
            sent += sock.send(data[sent : sent + 100_000])
        except BlockingIOError:
            blocked = True
            assert epoll.poll(10), "no event for room"
    sock.close()
    os.waitpid(pid, 0)
    say("had to wait", blocked)


def stopped_reader():
    """A reader that is stopped again and again, wherever it is, and goes on; a writer that is told by edges when it may write."""
    block = stream(4, 1 << 20) * 2
    out, into = os.pipe()

    def child(sock):
        buffer, count, right = bytearray(1 << 20), 0, True
        while got := sock.recv_into(buffer):
            at = count % (1 << 20)
            right = right and buffer.startswith(block[at : at + got])
            count += got
        os.write(into, b"%d %d" % (count, right))

    def stop():
        for _ in range(100):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.003)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.002)

    sock, pid = pair(child)
    os.close(into)
    sock.setblocking(False)
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    stopper = threading.Thread(target=stop)
    stopper.start()
    sent, view = 0, memoryview(block)
    while stopper.is_alive():
        try:
            sent += sock.send(view[sent % (1 << 20) :][: 1 << 18])
        except BlockingIOError:
            assert epoll.poll(10), "no event for room"
    sock.close()
    count, right = os.read(out, 100).split()
    say("all came", int(count) == sent, "as it was sent", int(right))
    os.waitpid(pid, 0)


def edge_reader():
    """A reader that is told by edges and stops at a short read, as epoll(7) allows."""
    def child(sock):
        for size in range(1, 3000, 7):
            sock.sendall(stream(size, size))
            if size % 5 == 0:
                time.sleep(0.0002)

    sock, pid = pair(child)
    sock.setblocking(False)
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    digest, count = hashlib.sha256(), 0
    open_still = True
    while open_still:
        events = epoll.poll(10)
        assert events, "no event for bytes"
        while True:
            try:
                data = sock.recv(4096)
            except BlockingIOError:
                break
            digest.update(data)
            count += len(data)
            if not data:
                open_still = False
                break
            if len(data) < 4096 and not events[0][1] & select.EPOLLRDHUP:
                break
    say(count, digest.hexdigest()[:16])
    os.waitpid(pid, 0)


def fork_writers():
    """Three processes write to one connection in turn."""
    def child(sock):
        read, write = os.pipe()
        for number in range(3):
            if os.fork() == 0:
                for turn in range(50):
                    token = os.read(read, 1)
                    sock.sendall(b"%d" % number * 10_000)
                    os.write(write, token)
                os._exit(0)
        os.write(write, b"t")
        for _ in range(3):
            os.wait()

    sock, pid = pair(child)
    data = recv_exactly(sock, 1_500_000)
    say([data.count(b"%d" % number) for number in range(3)], sock.recv(10))
    os.waitpid(pid, 0)


def fork_readers():
    """Two processes read from one connection; every byte reaches one of them."""
    sock, pid = pair(lambda sock: sock.sendall(b"x" * 3_000_000))
    out, into = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os.write(into, b"%d\n" % recv_all(sock)[0])
            os._exit(0)
    for _ in range(3):
        os.wait()
    os.close(into)
    say(sum(int(line) for line in os.fdopen(out)))


def last_holder():
    """The peer sees the end only when the last process that holds the socket has gone."""
    def child(sock):
        if os.fork() == 0:
            time.sleep(0.2)
            sock.sendall(b"late")
            os._exit(0)
        os._exit(0)

    sock, pid = pair(child)
    os.waitpid(pid, 0)
    say(recv_all(sock))


def exec_with(environment):
    def child(sock):
        os.dup2(sock.fileno(), 0)
        os.dup2(sock.fileno(), 1)
        sock.close()
        os.execve("/bin/cat", ["cat"], environment)

    sock, pid = pair(child)
    sock.sendall(b"early " * 100)
    time.sleep(0.1)
    sock.sendall(b"late " * 1000)
    sock.shutdown(socket.SHUT_WR)
    say(recv_all(sock))
    say(os.waitpid(pid, 0)[1])


def exec_same():
    """A program takes the socket over that has the library too."""
    exec_with(dict(os.environ))


def exec_without():
    """A program takes the socket over that has not."""
    exec_with({})


def spawn():
    """A child is started with the socket as its output."""
    def child(sock):
        subprocess.run(["/bin/echo", "from a child"], stdout=sock, env={})
        sock.sendall(b"from the parent")

    sock, pid = pair(child)
    say(recv_all(sock))
    os.waitpid(pid, 0)


def passed():
    """The socket goes to another process over a Unix socket."""
    def child(sock):
        one, other = socket.socketpair()
        if os.fork() == 0:
            sock.close()
            one.close()
            _, files, _, _ = socket.recv_fds(other, 1, 1)
            got = socket.socket(fileno=files[0])
            say("other process", recv_exactly(got, 6))
            got.sendall(b"from the other process")
            os._exit(0)
        socket.send_fds(one, [b"x"], [sock.fileno()])
        sock.close()
        os.wait()

    sock, pid = pair(child)
    sock.sendall(b"to you")
    say(recv_all(sock))
    os.waitpid(pid, 0)


def out_of_band():
    """Urgent data, and what came before and after it."""
    def child(sock):
        sock.sendall(b"before")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"after")

    sock, pid = pair(child)
    os.waitpid(pid, 0)
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    say(len(poll.poll(2000)), sock.recv(1, socket.MSG_OOB))
    say(recv_exactly(sock, 6), recv_all(sock))


def stdio():
    """The C library's streams on the socket."""
    LIBC.fdopen.restype = ctypes.c_void_p
    def child(sock):
        file = LIBC.fdopen(os.dup(sock.fileno()), b"w")
        LIBC.fputs(b"from a stream\n", ctypes.c_void_p(file))
        LIBC.fclose(ctypes.c_void_p(file))
        sock.sendall(b"from the socket\n")

    sock, pid = pair(child)
    say(recv_all(sock))
    os.waitpid(pid, 0)


def sandbox():
    """The process forbids itself all but a few calls."""
    def child(sock):
        allow = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
        buffer = ctypes.create_string_buffer(allow)
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(buffer))
        LIBC.prctl(38, 1, 0, 0, 0)
        say("sandboxed", LIBC.prctl(22, 2, ctypes.c_char_p(program), 0, 0))
        sock.sendall(b"from the sandbox")
        say(recv_exactly(sock, 4))

    sock, pid = pair(child)
    say(recv_exactly(sock, 16))
    sock.sendall(b"back")
    say(recv_all(sock))
    os.waitpid(pid, 0)


def timeout():
    """A read that gives up, then goes on."""
    def child(sock):
        recv_exactly(sock, 2)
        sock.sendall(b"late")

    sock, pid = pair(child)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
    say(outcome(sock.recv, 10))
    sock.sendall(b"go")
    say(recv_exactly(sock, 4))
    os.waitpid(pid, 0)


def interrupted():
    """A signal's handler ends a read; another one does not."""
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    def child(sock):
        time.sleep(0.4)
        sock.sendall(b"after")

    sock, pid = pair(child)
    count = []
    signal.signal(signal.SIGALRM, lambda *_: count.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    say(recv_exactly(sock, 5), count)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        say("read", sock.recv(10))
    except Stop:
        say("stopped")
    # An alarm while Python ends would end it by the signal.
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.waitpid(pid, 0)


def shutdown_wakes():
    """A thread that sleeps in a read is woken by another's shutdown."""
    sock, pid = pair(lambda sock: recv_all(sock))
    answers = []
    reader = threading.Thread(target=lambda: answers.append(outcome(sock.recv, 10)))
    reader.start()
    time.sleep(0.1)
    sock.shutdown(socket.SHUT_RDWR)
    reader.join()
    say(answers, outcome(sock.send, b"x"))
    sock.close()
    os.waitpid(pid, 0)


def kill_writer():
    """What a killed process had written arrives, then the end."""
    def child(sock):
        sock.sendall(b"x" * 100_000)
        os.kill(os.getpid(), signal.SIGKILL)

    sock, pid = pair(child)
    os.waitpid(pid, 0)
    say(recv_all(sock))


def kill_reader():
    """A writer learns that its reader was killed."""
    def child(sock):
        recv_exactly(sock, 1000)
        os.kill(os.getpid(), signal.SIGKILL)

    sock, pid = pair(child)
    try:
        for _ in range(10_000):
            sock.sendall(b"x" * 10_000)
        say("never told")
    except OSError as error:
        say(error.errno in (errno.EPIPE, errno.ECONNRESET))
    os.waitpid(pid, 0)


def foreign():
    """Bytes that no library sees: never silently mixed with others."""
    def child(sock):
        code = b"\xb8\x01\x00\x00\x00\x0f\x05\xc3"  # mov eax, 1 (write); syscall; ret
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        raw = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_long)(address)
        sock.sendall(b"seen")
        raw(sock.fileno(), b"unseen", 6)
        outcome(sock.sendall, b"seen too")

    sock, pid = pair(child)
    os.waitpid(pid, 0)
    say(recv_all(sock))


def dropped_at_home():
    """The sender's own interface drops some of what it sends, before the two ends agree: the kernel counts that as sent.
    A queue without room does that; a rule would do it too, but connections go back to TCP when rules change."""
    def queue(*words):
        words = ["tc", "qdisc", *words[:1], "dev", "sk0", "root", *words[1:]]
        subprocess.run(words, env={"PATH": os.environ["PATH"]}, check=True)

    def child(address, done):
        go_far()
        queue("add", "tbf", "rate", "20mbit", "burst", "3000", "limit", "4500")
        sock = socket.create_connection(address)
        sock.sendall(stream(1, 50_000))
        waiting = array.array("i", [1])
        while waiting[0]:
            fcntl.ioctl(sock, 0x5411, waiting)  # SIOCOUTQ
            time.sleep(0.01)
        queue("del")
        os.write(done, b"x")
        warm(sock, True)
        sock.sendall(stream(2, 3_000_000))
        say(recv_exactly(sock, 10))

    listener = socket.create_server((HERE, 0))
    wait, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(listener.getsockname(), done)
        os._exit(0)
    sock, _ = listener.accept()
    listener.close()
    os.read(wait, 1)  # until then this end makes no call, and nothing is agreed
    say(recv_exactly(sock, 50_000) == stream(1, 50_000))
    warm(sock, False)
    say(recv_exactly(sock, 3_000_000) == stream(2, 3_000_000))
    sock.sendall(b"0123456789")
    os.waitpid(pid, 0)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
