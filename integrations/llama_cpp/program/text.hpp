// The text of a file as tokens.
#ifndef LLAMA_STREAM_TEXT_HPP
#define LLAMA_STREAM_TEXT_HPP

#include <llama.h>

#include <cstdint>
#include <string>
#include <vector>

/** The contents of a file that is not empty. @throws UserError */
std::string read_file(const std::string &path);

/**
 * At least the first `n` + 1 tokens of a text, or all if n is 0 or there are fewer. Tokenizes little more than that.
 * @throws UserError
 */
std::vector<llama_token> first_tokens(const llama_vocab *vocab, const std::string &text, std::uint64_t n);

#endif
