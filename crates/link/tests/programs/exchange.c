/* Ping-pong, all-to-all and a ring of many small messages between MPI processes; prints one sum, which must be the same on every
 * path. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned long sum;

static void add(const unsigned char *bytes, int count)
{
    for (int i = 0; i < count; i++)
        sum = sum * 31 + bytes[i];
}

static void fill(unsigned char *bytes, int count, int salt)
{
    for (int i = 0; i < count; i++)
        bytes[i] = (unsigned char)((i * 131 >> 3) + salt);
}

int main(int argc, char **argv)
{
    int rank, size;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int most = 1 << 20;
    unsigned char *out = malloc((size_t)most * size), *in = malloc((size_t)most * size);

    for (int count = 1; count <= most; count *= 4) {
        for (int turn = 0; turn < 20; turn++) {
            if (rank == 0) {
                fill(out, count, turn);
                MPI_Send(out, count, MPI_BYTE, 1, turn, MPI_COMM_WORLD);
                MPI_Recv(in, count, MPI_BYTE, 1, turn, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                add(in, count);
            } else if (rank == 1) {
                MPI_Recv(in, count, MPI_BYTE, 0, turn, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                add(in, count);
                MPI_Send(in, count, MPI_BYTE, 0, turn, MPI_COMM_WORLD);
            }
        }
    }
    for (int count = 1; count <= 65536; count *= 16) {
        fill(out, count * size, rank);
        MPI_Alltoall(out, count, MPI_BYTE, in, count, MPI_BYTE, MPI_COMM_WORLD);
        add(in, count * size);
    }
    for (int turn = 0; turn < 2000; turn++) {
        int token = rank * turn, got = 0;
        MPI_Sendrecv(&token, 1, MPI_INT, (rank + 1) % size, 0, &got, 1, MPI_INT,
                     (rank + size - 1) % size, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        sum = sum * 31 + (unsigned)got;
    }
    unsigned long all = 0;
    MPI_Reduce(&sum, &all, 1, MPI_UNSIGNED_LONG, MPI_BXOR, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("%lx\n", all);
    free(out);
    free(in);
    MPI_Finalize();
    return 0;
}
