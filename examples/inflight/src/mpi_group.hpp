// Ranks of MPI: `mpirun -n 2 inflight-serve ...`.
#pragma once

#include "group.hpp"

#include <memory>

namespace inflight {

/**
 * The group of this process: that of mpirun, or a single rank without it. `argc` and `argv` are main's. To be called
 * once.
 *
 * Throws std::runtime_error when started by mpirun in a build without MPI.
 */
std::unique_ptr<Group> make_group(int *argc, char ***argv);

}  // namespace inflight
