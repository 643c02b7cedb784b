// The ranks that share a model by tensor parallelism.
#pragma once

#include "weights.hpp"

#include <cstddef>
#include <vector>

namespace inflight {

/** One rank; MPI's is in mpi_group.hpp. */
class Group {
public:
    virtual ~Group() = default;
    virtual std::size_t rank() const { return 0; }
    virtual std::size_t size() const { return 1; }
    /** Sums over the ranks, in place. */
    virtual void sum(float *, std::size_t) {}
    /** Everybody gets rank 0's tokens: no rank can part from the others by a rounding. */
    virtual void from_first(std::vector<Token> &) {}
    /** This rank cannot go on: the others, who would wait for it, are ended too. Of one rank nothing. */
    virtual void failed(const char *) {}
};

}  // namespace inflight
