// Requests in JSON lines.
#pragma once

#include "request.hpp"

#include <istream>
#include <string>
#include <vector>

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
 *     prompt        text, for models whose vocabulary is bytes; or
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
 */
std::vector<Line> read_requests(std::istream &in, const LlamaConfig &model);

}  // namespace inflight
