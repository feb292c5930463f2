/* Sends and receives with liburing, after its sockets are on the link. uring WORD: `plain`, or `registered` for descriptors that were
 * registered before; `files` uses the ring for a file only. Linked with the library alone: its headers need not be there. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Room for the library's `struct io_uring`. */
typedef struct { unsigned long words[64]; } ring;
int io_uring_queue_init(unsigned, ring *, unsigned);
struct io_uring_sqe *io_uring_get_sqe(ring *);
int io_uring_submit_and_wait(ring *, unsigned);
int io_uring_peek_batch_cqe(ring *, struct io_uring_cqe **, unsigned);
int io_uring_register_files(ring *, const int *, unsigned);

static void say(const char *what, long number) {
    printf("%s %ld\n", what, number);
    fflush(stdout);
}

static void all(int sock, char *bytes, size_t count, int sends) {
    while (count > 0) {
        ssize_t done = sends ? send(sock, bytes, count, 0) : recv(sock, bytes, count, 0);
        if (done <= 0) {
            say("broken", done);
            exit(1);
        }
        bytes += done;
        count -= done;
    }
}

/* As many messages to and fro as put both directions on the link. */
static void exchange(int sock, int first) {
    char bytes[2000];
    memset(bytes, 7, sizeof bytes);
    for (int round = 0; round < 60; round++) {
        all(sock, bytes, sizeof bytes, first);
        all(sock, bytes, sizeof bytes, !first);
    }
}

static int one(ring *to, int operation, int fd, int flags, void *bytes, unsigned count, unsigned long at) {
    struct io_uring_sqe *entry = io_uring_get_sqe(to);
    memset(entry, 0, sizeof *entry);
    entry->opcode = operation;
    entry->flags = flags;
    entry->fd = fd;
    entry->addr = (unsigned long)bytes;
    entry->len = count;
    entry->off = at;
    struct io_uring_cqe *done;
    io_uring_submit_and_wait(to, 1);
    if (io_uring_peek_batch_cqe(to, &done, 1) != 1) {
        return -1;
    }
    int result = done->res;
    /* The place of the queue's head is the first word after what concerns calls: 104 bytes. */
    unsigned *head = *(unsigned **)((char *)to + 104);
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

int main(int count, char **words) {
    const char *word = count > 1 ? words[1] : "plain";
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof place;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (void *)&place, sizeof place);
    listen(listener, 1);
    getsockname(listener, (void *)&place, &length);
    if (fork() == 0) {
        int sock = socket(AF_INET, SOCK_STREAM, 0);
        connect(sock, (void *)&place, sizeof place);
        exchange(sock, 0);
        char bytes[100] = {0};
        for (int round = 0; round < 20; round++) {
            all(sock, bytes, sizeof bytes, 0);
            all(sock, bytes, sizeof bytes, 1);
        }
        exchange(sock, 0);
        _exit(0);
    }
    int sock = accept(listener, NULL, NULL);
    exchange(sock, 1);
    ring to = {0};
    if (io_uring_queue_init(8, &to, 0) < 0) {
        printf("no io_uring\n");
        return 0;
    }
    int registered = strcmp(word, "registered") == 0, files = strcmp(word, "files") == 0;
    if (registered) {
        say("register", io_uring_register_files(&to, &sock, 1));
    }
    char sent[100], got[100];
    int file = open(words[0], O_RDONLY);
    for (int round = 0; round < 20; round++) {
        memset(sent, 'a' + round, sizeof sent);
        if (files) {
            say("file", one(&to, IORING_OP_READ, file, 0, got, 4, 0));
            all(sock, sent, sizeof sent, 1);
            all(sock, got, sizeof got, 0);
        } else {
            int flags = registered ? IOSQE_FIXED_FILE : 0, fd = registered ? 0 : sock;
            say("sent", one(&to, IORING_OP_SEND, fd, flags, sent, sizeof sent, 0));
            say("got", one(&to, IORING_OP_RECV, fd, flags, got, sizeof got, 0));
        }
        say("same", memcmp(sent, got, sizeof sent) == 0);
    }
    exchange(sock, 1);
    close(sock);
    wait(NULL);
    say("end", 0);
    return 0;
}
