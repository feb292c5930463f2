/* Times of messages between MPI processes: `mpi ping` or `mpi all` prints bytes and microseconds, line by line. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    int rank, size, most = 1 << 18;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int all = argc > 1 && strcmp(argv[1], "all") == 0;
    char *out = calloc(size, most), *in = calloc(size, most);
    for (int bytes = 1; bytes <= most; bytes *= 4) {
        int rounds = bytes < 10000 ? 2000 : 200;
        double begun = 0;
        for (int round = -rounds / 10; round < rounds; round++) {
            if (round == 0) {
                MPI_Barrier(MPI_COMM_WORLD);
                begun = MPI_Wtime();
            }
            if (all) {
                MPI_Alltoall(out, bytes, MPI_BYTE, in, bytes, MPI_BYTE, MPI_COMM_WORLD);
            } else if (rank == 0) {
                MPI_Send(out, bytes, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
                MPI_Recv(in, bytes, MPI_BYTE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            } else if (rank == 1) {
                MPI_Recv(in, bytes, MPI_BYTE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                MPI_Send(out, bytes, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
            }
        }
        double micros = (MPI_Wtime() - begun) * 1e6 / rounds;
        if (rank == 0) printf("%d %.3f\n", bytes, all ? micros : micros / 2);
    }
    MPI_Finalize();
    return 0;
}
