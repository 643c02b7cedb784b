// What a GGUF of a language model must hold before an engine loads it.
#ifndef SINKCACHE_PROGRAMS_MODEL_CHECKS_HPP
#define SINKCACHE_PROGRAMS_MODEL_CHECKS_HPP

#include "gguf_file.hpp"

namespace programs {

/**
 * Checks the keys and tensors that models of all architectures have in common. llama.cpp asserts some of this, which
 * ends the process, and believes the rest. Throws std::runtime_error with a text that names the file and the problem.
 */
void check_model(const GgufFile &file);

}  // namespace programs

#endif
