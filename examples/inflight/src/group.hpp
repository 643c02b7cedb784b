// The ranks of a tensor-parallel model.
#pragma once

#include "weights.hpp"

#include <cstddef>
#include <vector>

namespace inflight {

/** A single rank. Several ranks: mpi_group.hpp. */
class Group {
public:
    virtual ~Group() = default;
    virtual std::size_t rank() const { return 0; }
    virtual std::size_t size() const { return 1; }
    /** Sums over the ranks, in place. */
    virtual void all_reduce(float *, std::size_t) {}
    /** All ranks get rank 0's tokens, so that rounding cannot make them continue with different ones. */
    virtual void broadcast(std::vector<Token> &) {}
    /** Whether it is true on all ranks. */
    virtual bool all(bool here) { return here; }
    /** This rank has failed: ends the others too, which would wait for it. With one rank it does nothing. */
    virtual void abort(const char *) {}
};

}  // namespace inflight
