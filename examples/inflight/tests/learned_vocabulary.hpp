// GGUF files with nothing but a vocabulary, which is learned from the bundled text.
#pragma once

#include <string>

namespace test {

/** SentencePiece as in Llama 2, and byte pairs as in GPT-2 and most models since. */
enum class VocabularyKind { sentence_piece, byte_pairs };

/**
 * Writes a vocabulary of all bytes and 400 merges of them, with the special tokens and the template of ChatML, whose
 * <|im_end|> ends answers. Throws std::runtime_error.
 */
void write_vocabulary(const std::string &path, VocabularyKind kind);

}  // namespace test
