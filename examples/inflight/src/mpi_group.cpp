#include "mpi_group.hpp"

#include "command_line.hpp"

#include <cstdlib>
#include <stdexcept>

#ifdef INFLIGHT_MPI
#include <algorithm>
#include <climits>
#include <mpi.h>
#endif

namespace inflight {
namespace {

/** Whether Open MPI, MPICH or PMIx started this process. A single process does not initialise MPI. */
bool under_mpirun() {
    return std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("PMI_SIZE") || std::getenv("PMIX_RANK");
}

#ifdef INFLIGHT_MPI
class MpiGroup : public Group {
public:
    MpiGroup(int *argc, char ***argv) {
        MPI_Init(argc, argv);
        MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
        MPI_Comm_size(MPI_COMM_WORLD, &size_);
    }
    ~MpiGroup() override { MPI_Finalize(); }
    std::size_t rank() const override { return static_cast<std::size_t>(rank_); }
    std::size_t size() const override { return static_cast<std::size_t>(size_); }
    void all_reduce(float *x, std::size_t n) override {
        for (std::size_t at = 0; at < n; at += INT_MAX / 2) {
            const int count = static_cast<int>(std::min<std::size_t>(n - at, INT_MAX / 2));
            MPI_Allreduce(MPI_IN_PLACE, x + at, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        }
    }
    void broadcast(std::vector<Token> &tokens) override {
        MPI_Bcast(tokens.data(), static_cast<int>(tokens.size()), MPI_INT32_T, 0, MPI_COMM_WORLD);
    }
    bool all(bool here) override {
        int everywhere = here ? 1 : 0;
        MPI_Allreduce(MPI_IN_PLACE, &everywhere, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
        return everywhere == 1;
    }
    void abort(const char *why) override {
        programs::fail("rank " + std::to_string(rank_) + ": " + why);
        MPI_Abort(MPI_COMM_WORLD, programs::ERROR_CODE);
    }

private:
    int rank_ = 0, size_ = 1;
};
#endif

}  // namespace

std::unique_ptr<Group> make_group([[maybe_unused]] int *argc, [[maybe_unused]] char ***argv) {
    if (!under_mpirun()) {
        return std::make_unique<Group>();
    }
#ifdef INFLIGHT_MPI
    return std::make_unique<MpiGroup>(argc, argv);
#else
    throw std::runtime_error("started by mpirun, but built without MPI");
#endif
}

}  // namespace inflight
