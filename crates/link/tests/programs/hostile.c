/* Calls that a library between a program and its sockets may get wrong. `hostile NAME` prints what the program saw; plain
 * TCP and the link must print the same. Each begins with enough traffic for the connection to be on the ring. For HERE and
 * FAR in the environment see scenarios.py. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void die(const char *what) {
    printf("%s: %s\n", what, strerrorname_np(errno));
    fflush(stdout);
    _exit(1);
}

static const char *word(long result) {
    static char text[4][32];
    static int next;
    char *place = text[next++ % 4];
    if (result < 0) return strerrorname_np(errno);
    snprintf(place, 32, "%ld", result);
    return place;
}

static void rest(int ms) { usleep(ms * 1000); }

static double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void send_all(int sock, const void *bytes, size_t len) {
    const char *at = bytes;
    while (len > 0) {
        ssize_t sent = send(sock, at, len, MSG_NOSIGNAL);
        if (sent < 0) die("send");
        at += sent, len -= sent;
    }
}

static size_t recv_exactly(int sock, void *bytes, size_t len) {
    size_t done = 0;
    while (done < len) {
        ssize_t got = recv(sock, (char *)bytes + done, len - done, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        done += got;
    }
    return done;
}

/* Reads to the end: bytes and how it ended. */
static void recv_all(int sock, const char *who) {
    static char bytes[65536];
    long sum = 0;
    ssize_t got;
    while ((got = recv(sock, bytes, sizeof bytes, 0)) > 0 || (got < 0 && errno == EINTR)) sum += got > 0 ? got : 0;
    printf("%s: %ld bytes, then %s\n", who, sum, got < 0 ? strerrorname_np(errno) : "the end");
    fflush(stdout);
}

static void exchange(int sock, int first, int rounds) {
    char bytes[200] = {0};
    for (int round = 0; round < rounds; round++) {
        if (first) send_all(sock, bytes, sizeof bytes);
        if (recv_exactly(sock, bytes, sizeof bytes) != sizeof bytes) die("warming up");
        if (!first) send_all(sock, bytes, sizeof bytes);
    }
}

static void warm(int sock, int first) { exchange(sock, first, getenv("FAR") ? 600 : 40); }

static void go_far(void) {
    const char *far = getenv("FAR");
    if (!far) return;
    char *name = strdup(far), *folder = strchr(name, ':');
    *folder++ = 0;
    int space = open(name, O_RDONLY | O_CLOEXEC);
    if (space < 0 || setns(space, CLONE_NEWNET) || chdir(folder)) die("going far");
    close(space);
    free(name);
}

static int listen_here(struct sockaddr_in *address) {
    const char *here = getenv("HERE");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof *address;
    *address = (struct sockaddr_in){.sin_family = AF_INET};
    inet_pton(AF_INET, here ? here : "127.0.0.1", &address->sin_addr);
    if (bind(listener, (struct sockaddr *)address, len) || listen(listener, 8)) die("listening");
    getsockname(listener, (struct sockaddr *)address, &len);
    return listener;
}

/* Runs `child` at the other end, in a process of its own; our end. */
static int pair(void (*child)(int)) {
    struct sockaddr_in address;
    int listener = listen_here(&address);
    fflush(stdout);
    if (fork() == 0) {
        close(listener);
        go_far();
        int sock = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(sock, (struct sockaddr *)&address, sizeof address)) die("connecting");
        warm(sock, 1);
        child(sock);
        fflush(stdout);
        _exit(0);
    }
    int sock = accept(listener, NULL, NULL);
    close(listener);
    warm(sock, 0);
    return sock;
}

static void reap(void) {
    while (wait(NULL) > 0 || errno == EINTR) {}
}

/* The other end of most: answers `rounds` exchanges, then reads to the end and tells it. */
static void exchanges_then_end(int sock) {
    exchange(sock, 1, 50);
    recv_all(sock, "peer");
}

static void finish(int sock) {
    exchange(sock, 0, 50);
    shutdown(sock, SHUT_WR);
    recv_all(sock, "here");
    close(sock);
    reap();
}

static int status_of(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void vfork_child(void) {
    int sock = pair(exchanges_then_end);
    pid_t pid = vfork();
    if (pid == 0) _exit(3);
    printf("exit %d\n", status_of(pid));
    fcntl(sock, F_SETFD, FD_CLOEXEC);
    pid = vfork();
    if (pid == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(9);
    }
    printf("exec %d\n", status_of(pid));
    pid = vfork();
    if (pid == 0) {
        execl("/nowhere", "nowhere", (char *)NULL);
        _exit(errno == ENOENT ? 4 : 5);
    }
    printf("no program %d\n", status_of(pid));
    finish(sock);
}

static void spawned(void) {
    int sock = pair(exchanges_then_end);
    fcntl(sock, F_SETFD, FD_CLOEXEC);
    for (int turn = 0; turn < 3; turn++) {
        char *words[] = {"true", NULL};
        pid_t pid;
        printf("spawn %d", posix_spawn(&pid, "/bin/true", NULL, NULL, words, environ));
        printf(" exit %d\n", status_of(pid));
    }
    finish(sock);
}

/* A static program, which no library can be in front of, takes the socket over. */
static void static_program(void) {
    int sock = pair(exchanges_then_end);
    exchange(sock, 0, 50);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(sock, 1);
        close(sock);
        execl("./talker", "talker", (char *)NULL);
        _exit(9);
    }
    printf("exit %d\n", status_of(pid));
    send_all(sock, "after", 5);
    close(sock);
    reap();
}

static void dup2_over(void) {
    int sock = pair(exchanges_then_end), copy = dup(sock);
    exchange(sock, 0, 25);
    int nothing = open("/dev/null", O_RDWR);
    printf("dup2 %d\n", dup2(nothing, sock) == sock);
    printf("write %s\n", word(write(sock, "x", 1)));
    exchange(copy, 0, 25);
    printf("onto itself %d\n", dup2(copy, copy) == copy);
    printf("dup3 onto itself %s\n", word(dup3(copy, copy, 0)));
    printf("dup3 with odd flags %s\n", word(dup3(nothing, copy, 1)));
    printf("from a closed one %s\n", word(dup2(999, copy)));
    send_all(copy, "still here", 10);
    printf("the last %d\n", dup2(nothing, copy) == copy);
    reap();
}

static void ranges(void) {
    int sock = pair(exchanges_then_end);
    exchange(sock, 0, 25);
    printf("odd flags %s\n", word(close_range(sock, sock, 0x80)));
    printf("backwards %s\n", word(close_range(sock + 1, sock, 0)));
    printf("mark %s\n", word(close_range(sock, sock, CLOSE_RANGE_CLOEXEC)));
    printf("marked %d\n", fcntl(sock, F_GETFD));
    exchange(sock, 0, 25);
    send_all(sock, "last", 4);
    printf("close %s\n", word(close_range(sock, ~0U, CLOSE_RANGE_UNSHARE)));
    printf("closed %s\n", word(write(sock, "x", 1)));
    reap();
}

/* The socket goes over a Unix socket with `sendmmsg`. */
static void passed_in_a_list(void) {
    int sock = pair(exchanges_then_end), way[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, way);
    exchange(sock, 0, 50);
    fflush(stdout);
    if (fork() == 0) {
        close(sock);
        char byte, room[CMSG_SPACE(sizeof(int))];
        struct iovec piece = {&byte, 1};
        struct msghdr head = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        if (recvmsg(way[1], &head, 0) != 1) die("recvmsg");
        int got;
        memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&head)), sizeof got);
        /* Past every library: it may not be there. */
        printf("raw write %ld\n", syscall(SYS_write, got, "from the other", 14));
        fflush(stdout);
        _exit(0);
    }
    char byte = 'x', room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec piece = {&byte, 1};
    struct mmsghdr list = {
        .msg_hdr = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room}};
    struct cmsghdr *control = CMSG_FIRSTHDR(&list.msg_hdr);
    *control = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(control), &sock, sizeof sock);
    printf("sendmmsg %s\n", word(sendmmsg(way[0], &list, 1, 0)));
    close(sock);
    reap();
}

static volatile sig_atomic_t signals;
static int signal_sock = -1;

static void count_signal(int number) {
    (void)number;
    signals++;
    if (signal_sock >= 0 && write(signal_sock, "s", 1) != 1) signals += 1000;
}

static void handle(int number, int flags) {
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = flags};
    sigaction(number, &action, NULL);
}

static void alarm_in(int ms) {
    struct itimerval timer = {.it_value = {0, ms * 1000}};
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void after_signals(int sock) {
    char byte;
    for (int turn = 0; turn < 72; turn++) {
        if (recv_exactly(sock, &byte, 1) != 1) break;
        rest(40);
        send_all(sock, "b", 1);
    }
    recv_all(sock, "peer");
}

/* Signals in reads: with handlers that want them to go on, to end, and both kinds at a time; early and late in the read.
 * One that comes before the read has begun ends nothing; so several are tried. */
static void signalled(void) {
    int sock = pair(after_signals);
    char byte;
    for (int kind = 0; kind < 3; kind++) {
        for (int delay = 1; delay < 30; delay += 9) {
            int ended = 0;
            for (int turn = 0; turn < 6; turn++) {
                handle(SIGALRM, kind == 0 ? SA_RESTART : 0);
                if (kind == 2) handle(SIGUSR1, SA_RESTART);
                send_all(sock, "a", 1);
                alarm_in(delay);
                ssize_t got = recv(sock, &byte, 1, 0);
                if (got < 0) ended++, got = recv(sock, &byte, 1, 0);
                if (got != 1) printf("got %s\n", word(got));
            }
            printf("kind %d after %d: ended %d, signals %d\n", kind, delay, ended > 0, (int)signals);
        }
    }
    close(sock);
    reap();
}

/* A handler writes to the socket that its program waits on. */
static void handler_writes(void) {
    int sock = pair(after_signals);
    char byte;
    handle(SIGALRM, SA_RESTART);
    signal_sock = sock;
    for (int turn = 0; turn < 12; turn++) {
        alarm_in(1 + turn * 2);
        printf("%s", word(recv(sock, &byte, 1, 0)));
    }
    printf(" %d signals\n", (int)signals);
    close(sock);
    reap();
}

static volatile int reader_runs;

static void *read_one(void *sock) {
    static char bytes[100];
    reader_runs = 1;
    ssize_t got = recv((int)(long)sock, bytes, sizeof bytes, 0);
    return (void *)(got < 0 ? -errno : got);
}

static void late_bytes(int sock) {
    exchange(sock, 1, 50);
    rest(300);
    if (send(sock, "late", 4, MSG_NOSIGNAL) < 0) printf("peer: late %s\n", strerrorname_np(errno));
    recv_all(sock, "peer");
}

/* A thread reads; another ends the connection and closes, and the number goes to a file at once. */
static void close_while_reading(void) {
    for (int pause = 0; pause < 100; pause += 33) {
        int sock = pair(exchanges_then_end);
        exchange(sock, 0, 50);
        pthread_t thread;
        void *answer;
        reader_runs = 0;
        pthread_create(&thread, NULL, read_one, (void *)(long)sock);
        while (!reader_runs) sched_yield();
        rest(1 + pause);
        shutdown(sock, SHUT_RDWR);
        printf("close %d", close(sock));
        int zero = open("/dev/zero", O_RDONLY);
        printf(" reused %d", dup2(zero, sock) == sock);
        pthread_join(thread, &answer);
        printf(" the reader got %ld\n", (long)answer);
        close(zero);
        reap();
    }
}

static void cancelled(void) {
    int sock = pair(late_bytes);
    exchange(sock, 0, 50);
    for (int turn = 0; turn < 3; turn++) {
        pthread_t thread;
        void *answer;
        pthread_create(&thread, NULL, read_one, (void *)(long)sock);
        rest(turn * 20);
        pthread_cancel(thread);
        pthread_join(thread, &answer);
        printf("cancelled %d\n", answer == PTHREAD_CANCELED);
    }
    char bytes[4];
    printf("then %zu bytes\n", recv_exactly(sock, bytes, 4));
    shutdown(sock, SHUT_WR);
    recv_all(sock, "here");
    reap();
}

static void shutdown_own_reader(void) {
    int sock = pair(late_bytes);
    exchange(sock, 0, 50);
    pthread_t thread;
    void *answer;
    pthread_create(&thread, NULL, read_one, (void *)(long)sock);
    rest(50);
    printf("shutdown %d\n", shutdown(sock, SHUT_RD));
    pthread_join(thread, &answer);
    printf("the reader got %ld\n", (long)answer);
    send_all(sock, "more", 4);
    close(sock);
    reap();
}

static void sleeper(int sock) {
    exchange(sock, 1, 50);
    double begun = seconds();
    recv_all(sock, "peer");
    printf("peer: within half a second of the shutdown %d\n", seconds() - begun < 0.7);
    send_all(sock, "and back", 8);
}

static void shutdown_while_peer_sleeps(void) {
    int sock = pair(sleeper);
    exchange(sock, 0, 50);
    rest(200);
    shutdown(sock, SHUT_WR);
    printf("write %s\n", word(send(sock, "x", 1, MSG_NOSIGNAL)));
    recv_all(sock, "here");
    reap();
}

static void wait_all(int sock) {
    for (int turn = 0; turn < 10; turn++) {
        send_all(sock, "0123456789", 10);
        rest(3);
    }
    send_all(sock, "0123456789", 10);
    recv_exactly(sock, (char[1]){0}, 1);
    send_all(sock, "end", 3);
}

static void waitall(void) {
    int sock = pair(wait_all);
    char bytes[200];
    printf("peek %s\n", word(recv(sock, bytes, 50, MSG_WAITALL | MSG_PEEK)));
    printf("all %s\n", word(recv(sock, bytes, 100, MSG_WAITALL)));
    struct timeval time = {0, 150000};
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    printf("some %s\n", word(recv(sock, bytes, 100, MSG_WAITALL)));
    printf("none %s\n", word(recv(sock, bytes, 100, MSG_WAITALL)));
    send_all(sock, "x", 1);
    printf("to the end %s\n", word(recv(sock, bytes, 100, MSG_WAITALL)));
    printf("behind it %s\n", word(recv(sock, bytes, 100, MSG_WAITALL)));
    reap();
}

static void hundred(int sock) {
    send_all(sock, "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789", 100);
    recv_all(sock, "peer");
}

static int unread(int sock) {
    int bytes = -1;
    ioctl(sock, FIONREAD, &bytes);
    return bytes;
}

static void truncation(void) {
    int sock = pair(hundred);
    char bytes[200] = "untouched";
    while (unread(sock) < 100) rest(1);
    printf("peek %s %s\n", word(recv(sock, bytes, 10, MSG_PEEK | MSG_TRUNC)), bytes);
    printf("drop %s %s\n", word(recv(sock, bytes, 30, MSG_TRUNC)), bytes);
    printf("left %d\n", unread(sock));
    struct iovec piece = {bytes, 5};
    struct msghdr head = {.msg_iov = &piece, .msg_iovlen = 1, .msg_flags = -1, .msg_namelen = 44};
    const char *got = word(recvmsg(sock, &head, 0));
    printf("message %s %.5s flags %d name %d\n", got, bytes, head.msg_flags, (int)head.msg_namelen);
    printf("left %d\n", unread(sock));
    close(sock);
    reap();
}

static void silent(int sock) {
    exchange(sock, 1, 50);
    for (int turn = 0; turn < 21 && recv_exactly(sock, (char[1]){0}, 1) == 1; turn++) send_all(sock, "late", 4);
    recv_all(sock, "peer");
}

static void receive_timeout(void) {
    int sock = pair(silent);
    exchange(sock, 0, 50);
    struct timeval time = {0, 120000};
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    char bytes[10];
    for (int turn = 0; turn < 3; turn++) {
        double begun = seconds();
        const char *answer = word(recv(sock, bytes, sizeof bytes, 0));
        double took = seconds() - begun;
        printf("%s after its time %d\n", answer, took > 0.11 && took < 5);
    }
    handle(SIGALRM, SA_RESTART);
    alarm_in(30);
    printf("signal %s\n", word(recv(sock, bytes, sizeof bytes, 0)));
    alarm_in(1);
    printf("signal at once %s\n", word(recv(sock, bytes, sizeof bytes, 0)));
    send_all(sock, "x", 1);
    printf("bytes %zu\n", recv_exactly(sock, bytes, 4));
    /* Right behind bytes, where the library has not emptied the socket yet. */
    for (int turn = 0; turn < 20; turn++) {
        send_all(sock, "x", 1);
        recv_exactly(sock, bytes, 4);
        alarm_in(1);
        const char *answer = word(recv(sock, bytes, sizeof bytes, 0));
        if (strcmp(answer, "EAGAIN") != 0) signals = 1000;
    }
    printf("ended at least once %d\n", signals == 1000);
    close(sock);
    reap();
}

static void closes(int sock) {
    exchange(sock, 1, 50);
    close(sock);
}

static void broken_pipe(void) {
    int sock = pair(closes);
    exchange(sock, 0, 50);
    reap();
    handle(SIGPIPE, 0);
    recv_all(sock, "here");
    /* The first tells the peer's host, which answers that nobody is there. */
    printf("first %s\n", word(write(sock, "x", 1)));
    rest(50);
    printf("then %s", word(write(sock, "x", 1)));
    printf(", %d signals\n", (int)signals);
    printf("quietly %s", word(send(sock, "x", 1, MSG_NOSIGNAL)));
    printf(", %d signals\n", (int)signals);
    struct iovec piece = {"x", 1};
    printf("writev %s", word(writev(sock, &piece, 1)));
    printf(", %d signals\n", (int)signals);
    close(sock);
}

static void empty_pieces(void) {
    int sock = pair(exchanges_then_end);
    exchange(sock, 0, 50);
    struct iovec pieces[] = {{NULL, 0}, {"ab", 2}, {NULL, 0}, {"", 0}, {"c", 1}, {NULL, 0}}, many[1025] = {0};
    printf("pieces %s\n", word(writev(sock, pieces, 6)));
    printf("all empty %s\n", word(writev(sock, pieces, 1)));
    printf("none %s\n", word(writev(sock, pieces, 0)));
    printf("too many %s\n", word(writev(sock, many, 1025)));
    volatile int less = -1;
    printf("less than none %s\n", word(writev(sock, pieces, less)));
    printf("zero bytes %s\n", word(write(sock, "x", 0)));
    struct msghdr head = {0};
    printf("empty message %s\n", word(sendmsg(sock, &head, 0)));
    many[7] = (struct iovec){"seven", 5};
    printf("far out %s\n", word(writev(sock, many, 1024)));
    shutdown(sock, SHUT_WR);
    reap();
}

static void counts(int sock) {
    exchange(sock, 1, 50);
    send_all(sock, "0123456789", 10);
    rest(400);
    recv_all(sock, "peer");
}

static void queues(void) {
    int sock = pair(counts), out = -1;
    exchange(sock, 0, 50);
    for (int turn = 0; turn < 1000 && unread(sock) < 10; turn++) rest(1);
    printf("unread %d\n", unread(sock));
    char bytes[4];
    recv_exactly(sock, bytes, 4);
    printf("unread %d\n", unread(sock));
    send_all(sock, "0123456789", 10);
    double begun = seconds();
    do ioctl(sock, SIOCOUTQ, &out);
    while (out > 0 && seconds() - begun < 0.3 && (rest(1), 1));
    printf("all has left while the peer does not read: %d\n", out == 0);
    ioctl(sock, SIOCOUTQNSD, &out);
    printf("unsent %d\n", out);
    shutdown(sock, SHUT_WR);
    reap();
}

static void print_poll(int sock, int events) {
    struct pollfd set = {sock, events, 0};
    printf("poll %d", poll(&set, 1, 2000));
    printf(" %x\n", set.revents);
}

static const char *error_of(int sock) {
    int error = -1;
    socklen_t len = sizeof error;
    getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &len);
    return error ? strerrorname_np(error) : "none";
}

static void information(void) {
    int sock = pair(closes);
    struct tcp_info info;
    socklen_t len = sizeof info;
    exchange(sock, 0, 50);
    reap();
    char byte;
    printf("end %s\n", word(recv(sock, &byte, 1, 0)));
    printf("info %s", word(getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &len)));
    printf(" state %d\n", info.tcpi_state);
    print_poll(sock, POLLIN | POLLOUT | POLLRDHUP);
    close(sock);
}

static void lingers(int sock) {
    exchange(sock, 1, 50);
    struct linger linger = {1, 0};
    setsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(sock);
}

static void reset_by_linger(void) {
    int sock = pair(lingers);
    char byte;
    exchange(sock, 0, 50);
    printf("read %s\n", word(recv(sock, &byte, 1, 0)));
    printf("again %s\n", word(recv(sock, &byte, 1, 0)));
    reap();
    close(sock);
    sock = pair(lingers);
    exchange(sock, 0, 50);
    reap();
    print_poll(sock, POLLIN);
    printf("SO_ERROR %s", error_of(sock));
    printf(", then %s\n", error_of(sock));
    printf("read %s\n", word(recv(sock, &byte, 1, 0)));
    close(sock);
}

static void leaves_unread(int sock) {
    exchange(sock, 1, 50);
    send_all(sock, "0123456789", 10);
    rest(200);
    close(sock);
}

/* The peer closes with bytes unread: a reset, behind the bytes that it had sent. */
static void reset_behind_bytes(void) {
    int sock = pair(leaves_unread);
    char bytes[20];
    exchange(sock, 0, 50);
    send_all(sock, "never read", 10);
    reap();
    printf("bytes %zu\n", recv_exactly(sock, bytes, 5));
    printf("SO_ERROR %s\n", error_of(sock));
    printf("bytes %s\n", word(recv(sock, bytes, 20, 0)));
    printf("end %s\n", word(recv(sock, bytes, 20, 0)));
    signal(SIGPIPE, SIG_IGN);
    printf("write %s\n", word(write(sock, "x", 1)));
    close(sock);
}

/* A connection that is made without waiting, and a set with edges that knew it before. */
static void nonblocking_connect(void) {
    struct sockaddr_in address;
    int listener = listen_here(&address);
    fflush(stdout);
    if (fork() == 0) {
        close(listener);
        go_far();
        int sock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), set = epoll_create1(0);
        int result = connect(sock, (struct sockaddr *)&address, sizeof address);
        printf("connect %s\n", result < 0 ? strerrorname_np(errno) : "0");
        struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLET, {.u64 = 0x123456789abcdef0}}, seen;
        epoll_ctl(set, EPOLL_CTL_ADD, sock, &event);
        int events = epoll_wait(set, &seen, 1, 5000);
        printf("%d event, ours %d, writable %d, error %s\n", events, seen.data.u64 == event.data.u64,
               !!(seen.events & EPOLLOUT), error_of(sock));
        char bytes[200] = {0};
        long sum = 0;
        for (int round = 0; round < 1000; round++) {
            if (write(sock, bytes, sizeof bytes) != sizeof bytes) die("write");
            size_t got = 0;
            while (got < sizeof bytes) {
                ssize_t part = read(sock, bytes + got, sizeof bytes - got);
                if (part > 0) got += part;
                else if (part == 0 || errno != EAGAIN) die("read");
                else if (epoll_wait(set, &seen, 1, 5000) != 1) die("no event for bytes");
            }
            sum += got;
        }
        printf("echoed %ld\n", sum);
        fflush(stdout);
        _exit(0);
    }
    int sock = accept(listener, NULL, NULL);
    exchange(sock, 0, 1000);
    recv_all(sock, "here");
    close(sock);
    reap();
}

static void refused(void) {
    struct sockaddr_in address;
    close(listen_here(&address));
    for (int kind = 0; kind < 2; kind++) {
        int sock = socket(AF_INET, SOCK_STREAM | (kind ? SOCK_NONBLOCK : 0), 0);
        int result = connect(sock, (struct sockaddr *)&address, sizeof address);
        printf("connect %s ", result < 0 ? strerrorname_np(errno) : "0");
        print_poll(sock, POLLOUT);
        printf("SO_ERROR %s\n", error_of(sock));
        close(sock);
    }
}

static void trickles(int sock) {
    for (int turn = 0; turn < 400; turn++) {
        send_all(sock, "0123456789", 10);
        if (turn % 50 == 0) rest(3);
    }
    recv_all(sock, "peer");
}

/* Told of bytes by a signal alone. */
static void by_signal(void) {
    int sock = pair(trickles);
    sigset_t mask, before;
    sigemptyset(&mask);
    sigaddset(&mask, SIGIO);
    sigprocmask(SIG_BLOCK, &mask, &before);
    handle(SIGIO, SA_RESTART);
    fcntl(sock, F_SETOWN, getpid());
    fcntl(sock, F_SETFL, O_NONBLOCK | O_ASYNC);
    long sum = 0;
    char bytes[4096];
    for (int idle = 0; sum < 4000;) {
        ssize_t got = read(sock, bytes, sizeof bytes);
        if (got > 0) { sum += got; continue; }
        struct timespec patience = {3, 0};
        if (sigtimedwait(&mask, NULL, &patience) < 0 && errno == EAGAIN && idle++) break;
    }
    printf("%ld bytes\n", sum);
    close(sock);
    reap();
}

static long reader_sum[2];

static void *read_on(void *at) {
    char bytes[1000];
    ssize_t got;
    while ((got = read(signal_sock, bytes, sizeof bytes)) > 0) reader_sum[(long)at] += got;
    return NULL;
}

static void many_small(int sock) {
    for (int turn = 0; turn < 3000; turn++) {
        send_all(sock, "0123456789", 10);
        if (turn % 500 == 0) rest(5);
    }
}

static void two_threads_read(void) {
    signal_sock = pair(many_small);
    pthread_t threads[2];
    for (long at = 0; at < 2; at++) pthread_create(&threads[at], NULL, read_on, (void *)at);
    for (int at = 0; at < 2; at++) pthread_join(threads[at], NULL);
    printf("%ld bytes\n", reader_sum[0] + reader_sum[1]);
    reap();
}

/* One thread reads and waits; another polls the same socket without reading, and is told. */
static void *poll_on(void *answer) {
    struct pollfd set = {signal_sock, POLLIN, 0};
    *(int *)answer = poll(&set, 1, 3000);
    return NULL;
}

static void one_late_byte(int sock) {
    exchange(sock, 1, 50);
    rest(100);
    send_all(sock, "x", 1);
    recv_all(sock, "peer");
}

static void polled_by_another(void) {
    signal_sock = pair(one_late_byte);
    exchange(signal_sock, 0, 50);
    pthread_t poller;
    int told = 0;
    pthread_create(&poller, NULL, poll_on, &told);
    pthread_join(poller, NULL);
    char byte;
    printf("told %d, read %s\n", told, word(recv(signal_sock, &byte, 1, 0)));
    close(signal_sock);
    reap();
}

/* Reads with the kernel's rings of calls, which pass every library. */
static void io_uring(void) {
    int sock = pair(exchanges_then_end);
    exchange(sock, 0, 50);
    struct io_uring_params params = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &params);
    if (ring < 0) {
        printf("no io_uring\n");
    } else {
        size_t len = params.sq_off.array + params.sq_entries * 4;
        size_t other = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
        char *sq = mmap(NULL, len > other ? len : other, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
        struct io_uring_sqe *entry = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
        *entry = (struct io_uring_sqe){.opcode = IORING_OP_SEND, .fd = sock, .addr = (unsigned long)"by the kernel", .len = 13};
        ((unsigned *)(sq + params.sq_off.array))[0] = 0;
        __atomic_store_n((unsigned *)(sq + params.sq_off.tail), 1, __ATOMIC_RELEASE);
        printf("enter %ld\n", syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
        struct io_uring_cqe *done = (void *)(sq + params.cq_off.cqes);
        printf("result %d\n", done->res);
    }
    shutdown(sock, SHUT_WR);
    recv_all(sock, "here");
    reap();
}

static void sends_ten(int sock) {
    exchange(sock, 1, 50);
    send_all(sock, "0123456789", 10);
    rest(100);
    exchange(sock, 1, 1);
    send_all(sock, "end", 3);
}

/* Several messages with one call: times that are over, that are none, and the end in the middle. */
static void lists(void) {
    int sock = pair(sends_ten);
    char bytes[4][3];
    struct iovec pieces[4];
    struct mmsghdr list[4] = {0};
    exchange(sock, 0, 50);
    for (int at = 0; at < 4; at++) {
        pieces[at] = (struct iovec){bytes[at], 3};
        list[at].msg_hdr = (struct msghdr){.msg_iov = &pieces[at], .msg_iovlen = 1};
    }
    while (unread(sock) < 10) rest(1);
    struct timespec over = {0, 0}, bad = {0, 2000000000}, long_time = {9, 0};
    printf("no time %s\n", word(recvmmsg(sock, list, 4, 0, &bad)));
    printf("over at once %s", word(recvmmsg(sock, list, 4, 0, &over)));
    printf(", %u bytes\n", list[0].msg_len);
    printf("what there is %s", word(recvmmsg(sock, list, 4, MSG_WAITFORONE, &long_time)));
    printf(", %u %u %u bytes, time left %d\n", list[0].msg_len, list[1].msg_len, list[2].msg_len, long_time.tv_sec == 8);
    printf("nothing %s\n", word(recvmmsg(sock, list, 4, MSG_DONTWAIT, NULL)));
    exchange(sock, 0, 1);
    printf("and the end %s", word(recvmmsg(sock, list, 4, 0, NULL)));
    printf(", %u %u %u %u bytes\n", list[0].msg_len, list[1].msg_len, list[2].msg_len, list[3].msg_len);
    close(sock);
    reap();
}

static void both_ways(int sock) {
    exchange(sock, 1, 50);
    send_all(sock, "on the ring ", 12);
    int least = 2;
    /* From here on over TCP. */
    setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, &least, sizeof least);
    send_all(sock, "and on TCP", 10);
    recv_all(sock, "peer");
}

/* What is looked at lies on both ways. */
static void looks_across(void) {
    int sock = pair(both_ways);
    char bytes[100] = {0};
    exchange(sock, 0, 50);
    while (unread(sock) < 22) rest(1);
    printf("unread %d\n", unread(sock));
    printf("all of it %s", word(recv(sock, bytes, 22, MSG_PEEK | MSG_WAITALL)));
    printf(" %s\n", bytes);
    struct iovec pieces[] = {{bytes, 9}, {bytes + 10, 9}};
    struct msghdr head = {.msg_iov = pieces, .msg_iovlen = 2};
    printf("in pieces %s", word(recvmsg(sock, &head, MSG_PEEK)));
    printf(" %.9s|%.9s\n", bytes, bytes + 10);
    memset(bytes, 0, sizeof bytes);
    printf("read %s", word(recv(sock, bytes, 100, 0)));
    printf(" %s\n", bytes);
    close(sock);
    reap();
}

#define CASE(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(void);
} CASES[] = {
    CASE(vfork_child), CASE(spawned), CASE(static_program), CASE(dup2_over), CASE(ranges), CASE(passed_in_a_list),
    CASE(signalled), CASE(handler_writes), CASE(close_while_reading), CASE(cancelled), CASE(shutdown_own_reader),
    CASE(shutdown_while_peer_sleeps), CASE(waitall), CASE(truncation), CASE(receive_timeout), CASE(broken_pipe),
    CASE(empty_pieces), CASE(queues), CASE(information), CASE(reset_by_linger), CASE(reset_behind_bytes),
    CASE(nonblocking_connect), CASE(refused), CASE(by_signal), CASE(two_threads_read), CASE(polled_by_another),
    CASE(io_uring), CASE(lists), CASE(looks_across),
};

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    for (size_t at = 0; count > 1 && at < sizeof CASES / sizeof *CASES; at++) {
        if (strcmp(CASES[at].name, words[1]) == 0) {
            CASES[at].run();
            return 0;
        }
    }
    printf("no such case\n");
    return 2;
}
