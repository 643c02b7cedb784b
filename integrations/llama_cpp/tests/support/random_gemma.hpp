// Random Gemma 3n and Gemma 4: layers that read another's K and V, and layers whose heads differ.
#ifndef SINKCACHE_TESTS_RANDOM_GEMMA_HPP
#define SINKCACHE_TESTS_RANDOM_GEMMA_HPP

#include "random_model.hpp"

/**
 * Gemma 4: layers 0, 1, 2 and 4 have a sliding window of 32 tokens and two KV heads of 16 dims, layers 3 and 5 no
 * window and one KV head of 32. With `shared`, layers 4 and 5 read the K and V of layers 2 and 3.
 */
RandomModel random_gemma4(bool shared);

/** Gemma 3n with its 20 layers that have K and V, and five that read those of layers 18 and 19. */
RandomModel random_gemma3n();

#endif
