// Ranks of MPI: `mpirun -n 2 inflight-serve ...`.
#pragma once

#include "group.hpp"

#include <memory>

namespace inflight {

/**
 * The group this process was started in: that of mpirun, else one rank. `argc` and `argv` are main's. Once per process.
 *
 * Throws std::runtime_error when started by mpirun in a build without MPI.
 */
std::unique_ptr<Group> make_group(int *argc, char ***argv);

}  // namespace inflight
