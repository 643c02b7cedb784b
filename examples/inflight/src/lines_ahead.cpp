#include "lines_ahead.hpp"

#include "line_reader.hpp"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace inflight {
namespace {

constexpr std::size_t MOST_LINES = 1024, MOST_BYTES = std::size_t{1} << 26;

}  // namespace

struct LinesAhead::Shared {
    explicit Shared(std::ifstream stream) : file(std::move(stream)), lines(file) {}

    /** The thread's alone. */
    std::ifstream file;
    programs::LineReader lines;

    std::mutex mutex;
    std::condition_variable changed;
    std::deque<TextLine> waiting;
    std::size_t bytes = 0;
    bool at_end = false, abandoned = false;
    std::exception_ptr error;

    bool is_full() const { return waiting.size() >= MOST_LINES || bytes > MOST_BYTES; }
};

LinesAhead::LinesAhead(std::ifstream file) : shared_(std::make_shared<Shared>(std::move(file))) {
    std::thread([shared = shared_] { read(shared); }).detach();
}

LinesAhead::~LinesAhead() {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->abandoned = true;
    shared_->changed.notify_all();
}

void LinesAhead::read(const std::shared_ptr<Shared> &shared) {
    bool more = true;
    while (more) {
        std::exception_ptr error;
        TextLine line;
        try {
            more = shared->lines.next();
            line = {shared->lines.text(), shared->lines.number(), shared->lines.cut()};
        } catch (...) {
            error = std::current_exception();
            more = false;
        }
        std::unique_lock<std::mutex> lock(shared->mutex);
        shared->changed.wait(lock, [&] { return !shared->is_full() || shared->abandoned; });
        if (shared->abandoned) {
            return;
        }
        if (more) {
            shared->bytes += line.text.size();
            shared->waiting.push_back(std::move(line));
        } else {
            shared->at_end = true;
            shared->error = error;
        }
        shared->changed.notify_all();
    }
}

std::optional<TextLine> LinesAhead::next(bool wait) {
    std::unique_lock<std::mutex> lock(shared_->mutex);
    if (wait) {
        shared_->changed.wait(lock, [&] { return !shared_->waiting.empty() || shared_->at_end; });
    }
    if (!shared_->waiting.empty()) {
        TextLine line = std::move(shared_->waiting.front());
        shared_->waiting.pop_front();
        shared_->bytes -= line.text.size();
        shared_->changed.notify_all();
        return line;
    }
    if (shared_->at_end && shared_->error) {
        std::rethrow_exception(std::exchange(shared_->error, nullptr));
    }
    ended_ = shared_->at_end;
    return std::nullopt;
}

}  // namespace inflight
