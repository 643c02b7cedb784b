// Random models with recurrent layers beside layers with attention.
#ifndef SINKCACHE_TESTS_RANDOM_HYBRID_HPP
#define SINKCACHE_TESTS_RANDOM_HYBRID_HPP

#include "random_model.hpp"

#include <cstdint>
#include <map>
#include <string>

/**
 * By name, with a vocabulary of that size. Those with `no_rope` in their names have RoPE in no layer, so that their
 * graphs have no positions.
 */
std::map<std::string, RandomModel> hybrid_models(std::int64_t n_vocab = 128);

#endif
