/* A static program with a socket as its output. */
#include <unistd.h>

int main(void) {
    for (int turn = 0; turn < 1000; turn++)
        if (write(1, "from a static program\n", 22) != 22) return 1;
    return 0;
}
