#include "feed.hpp"

#include <filesystem>
#include <stdexcept>
#include <utility>

namespace inflight {
namespace {

/** A conversation keeps its sequence for a next round that is among the waiting requests. */
constexpr std::size_t MOST_WAITING = 1024, MOST_WAITING_TOKENS = std::size_t(1) << 24;

}  // namespace

RequestsFile RequestsFile::open(const std::string &path) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
        throw std::runtime_error("requests '" + path + "' is a directory");
    }
    const bool is_pipe = !std::filesystem::is_regular_file(path, ignored);
    RequestsFile requests{std::ifstream(path, std::ios::binary), is_pipe};
    if (!requests.file) {
        throw std::runtime_error("requests '" + path + "' cannot be opened");
    }
    return requests;
}

Feed::Feed(RequestsFile file, bool one_rank, Executor &executor, const LlamaConfig &model, const Vocabulary &vocabulary)
    : executor_(executor), model_(model), vocabulary_(vocabulary), file_(std::move(file.file)) {
    if (one_rank && file.is_pipe) {
        ahead_.emplace(std::move(file_));
    } else {
        requests_.emplace(file_, model, vocabulary);
    }
}

/** The next line; none at the end, and unless `wait` where a pipe has none yet. */
std::optional<Line> Feed::next(bool wait) {
    if (requests_) {
        std::optional<Line> line = requests_->next();
        ended_ = !line;
        return line;
    }
    while (const auto text = ahead_->next(wait)) {
        if (auto line = RequestReader::read(*text, model_, vocabulary_)) {
            return line;
        }
    }
    ended_ = ahead_->ended();
    return std::nullopt;
}

std::vector<Result> Feed::submit(bool idle) {
    std::vector<Result> unreadable;
    for (std::size_t n = 0; !ended_ && n < MOST_WAITING && ((idle && n == 0) || has_room()); n++) {
        const std::optional<Line> line = next(idle && n == 0);
        if (!line) {
            break;
        }
        if (line->request) {
            executor_.submit(*line->request);
            continue;
        }
        Result result;
        result.id = line->id;
        result.outcome = Outcome::failed;
        result.error = line->error;
        unreadable.push_back(std::move(result));
    }
    unreadable_ += unreadable.size();
    return unreadable;
}

bool Feed::has_room() const {
    return executor_.counters().waiting < MOST_WAITING && executor_.waiting_tokens() < MOST_WAITING_TOKENS;
}

}  // namespace inflight
