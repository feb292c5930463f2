"""A writer that does not wait and is told by edges when it may write: edge_writer.py ADDRESS PORT BYTES. Small pieces until a line comes
on its input, then that many bytes; prints how many went out in all."""

import select, socket, sys

sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sent = 0
while not select.select([sys.stdin], [], [], 0.001)[0]:
    sock.sendall(b"x" * 100)
    sent += 100
sys.stdin.readline()
sock.setblocking(False)
epoll = select.epoll()
epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
piece, end = b"x" * 100_000, sent + int(sys.argv[3])
while sent < end:
    try:
        sent += sock.send(piece[: end - sent])
    except BlockingIOError:
        assert epoll.poll(10), "no event for room"
sock.close()
print(sent)
