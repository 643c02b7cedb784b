// Requests in JSON lines.
#pragma once

#include "line_reader.hpp"
#include "request.hpp"
#include "text_line.hpp"
#include "vocabulary.hpp"

#include <istream>
#include <optional>
#include <string>

namespace inflight {

/** A line: a request, or an error message. */
struct Line {
    std::optional<Request> request;
    /** Of the request as far as it could be read, else "line N". */
    std::string id;
    std::string error;
};

/**
 * Reads requests, one JSON object per line; empty lines are skipped. Fields:
 *
 *     id            text, required
 *     prompt        text; or
 *     messages      array of {"role": ..., "content": ...}, for models with a chat template; or
 *     tokens        array of token ids
 *     max_tokens    most tokens to generate, default 64
 *     temperature   default 0 = greedy
 *     seed          of sampling, default 0
 *     conversation  name under which the sequence stays in the cache
 *     continue      name of the conversation whose next round this is
 *     fork          name of the conversation that this starts from a copy of
 *     end           true: the continued conversation ends with this round
 *     arrival       iteration at which it arrives, default 0
 *     cancel_after  iterations after its arrival at which it is cancelled
 *
 * A line is read when it is asked for, so a stream need not have an end. Names have at most MAX_NAME bytes.
 */
class RequestReader {
public:
    static constexpr std::size_t MAX_NAME = 256;
    /** Ranges of a `drop`: each is an edit, and one that is refused a note. */
    static constexpr std::size_t MAX_RANGES = 1024;
    /** Arrays and objects that may lie inside one another. A request needs three: line, ranges to drop, range. */
    static constexpr int MAX_DEPTH = 16;

    /** Stream, model and vocabulary must outlive the reader. */
    RequestReader(std::istream &in, const LlamaConfig &model, const Vocabulary &vocabulary)
        : lines_(in), model_(model), vocabulary_(vocabulary) {}

    /** The next line; none at the end. Throws std::runtime_error only if the stream cannot be read. */
    std::optional<Line> next();
    /** A line that was read elsewhere; none if it is empty. */
    static std::optional<Line> read(const TextLine &line, const LlamaConfig &model, const Vocabulary &vocabulary);

private:
    programs::LineReader lines_;
    const LlamaConfig &model_;
    const Vocabulary &vocabulary_;
};

}  // namespace inflight
