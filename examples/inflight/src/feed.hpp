// From the lines of a file to the requests of an executor.
#pragma once

#include "executor.hpp"
#include "lines_ahead.hpp"
#include "requests_file.hpp"

#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace inflight {

/** A file of requests that was opened before a model is loaded. */
struct RequestsFile {
    std::ifstream file;
    /** Whether it may pause: no file of a disk. */
    bool is_pipe = false;

    /** Throws std::runtime_error for what cannot be opened. */
    static RequestsFile open(const std::string &path);
};

/** Feeds the executor from a file, no faster than it needs requests: the file may be long, or a pipe. */
class Feed {
public:
    /**
     * `one_rank`: no other rank has the same iterations. Only then requests run while a pipe pauses: all ranks must
     * read the same lines before the same iteration. Executor, model and vocabulary must outlive this object.
     */
    Feed(RequestsFile file, bool one_rank, Executor &executor, const LlamaConfig &model, const Vocabulary &vocabulary);

    /**
     * Submits the next lines, at least one if the executor is idle. Returns results of those that are no requests.
     * Throws std::runtime_error if the file cannot be read.
     */
    std::vector<Result> submit(bool idle);
    bool ended() const { return ended_; }
    /** Lines so far that were no requests. */
    std::uint64_t unreadable() const { return unreadable_; }

private:
    std::optional<Line> next(bool wait);
    bool has_room() const;

    Executor &executor_;
    const LlamaConfig &model_;
    const Vocabulary &vocabulary_;
    /** With `ahead_`, which then has the file, there is no reader. */
    std::ifstream file_;
    std::optional<RequestReader> requests_;
    std::optional<LinesAhead> ahead_;
    bool ended_ = false;
    std::uint64_t unreadable_ = 0;
};

}  // namespace inflight
