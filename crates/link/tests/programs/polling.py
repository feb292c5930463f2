"""Two programs that speak in small messages and sleep in `select` for each. They go on until standard input ends; what came is compared.

HERE and FAR in the environment (an address of this host; the other host's network namespace and folder) put the child on another
host.
"""

import os, select, socket, sys

sys.dont_write_bytecode = True
from scenarios import HERE, go_far, recv_exactly

listener = socket.create_server((HERE, 0))
child = os.fork()
if child == 0:
    go_far()
    peer = socket.create_connection(listener.getsockname())
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        select.select([peer], [], [])
        message = recv_exactly(peer, 100)
        if not message:
            os._exit(0)
        peer.sendall(message[::-1])
sock, _ = listener.accept()
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
number = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    message = number.to_bytes(100, "big")
    sock.sendall(message)
    select.select([sock], [], [])
    assert recv_exactly(sock, 100) == message[::-1]
    number += 1
sock.close()
assert os.waitpid(child, 0)[1] == 0
print("all came")
