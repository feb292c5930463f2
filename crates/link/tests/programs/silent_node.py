"""Two connections whose node has gone: silent_node.py ADDRESS PORT. Small pieces on each until a line comes on its input; after a
third line it reads what comes, and prints for each what that was and how long it took, in seconds."""

import errno, select, socket, sys, time


def connection():
    sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        sock.sendall(b"x" * 100)
    sys.stdin.readline()
    return sock


socks = [connection(), connection()]
sys.stdin.readline()
for sock in socks:
    begun = time.monotonic()
    try:
        got = len(sock.recv(10))
    except OSError as error:
        got = errno.errorcode[error.errno]
    print(got, time.monotonic() - begun)
