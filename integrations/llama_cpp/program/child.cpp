#include "child.hpp"

#include "engine.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <fstream>

#ifdef __unix__
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

/** First characters of an answer, and the last: one that is cut off lacks it. */
constexpr char DONE = 'd', THREW = 't', END = '.';

constexpr int SECONDS = 20;
/** More than that on a busy machine. */
constexpr std::chrono::seconds PATIENCE{3 * SECONDS};

/** Lowers a limit; below it there is nothing to do. */
void limit(decltype(RLIMIT_CPU) resource, rlim_t most, rlim_t hardest) {
    rlimit now{};
    if (getrlimit(resource, &now) == 0) {
        now.rlim_max = std::min(now.rlim_max, hardest);
        now.rlim_cur = std::min(now.rlim_max, most);
        setrlimit(resource, &now);
    }
}

/** What counts for RLIMIT_DATA; 0 if the system does not report it. */
rlim_t data_bytes() {
    std::ifstream file("/proc/self/statm");
    rlim_t pages = 0;
    // Of its seven numbers the sixth.
    for (int i = 0; i < 6; ++i) {
        file >> pages;
    }
    return file ? pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) : 0;
}

bool write_all(int file, const std::string &text) {
    for (std::size_t at = 0; at < text.size();) {
        const ssize_t n = write(file, text.data() + at, text.size() - at);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        at += n > 0 ? static_cast<std::size_t>(n) : 0;
    }
    return true;
}

/** What comes until the end, or until PATIENCE is over. */
std::string read_all(int file) {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    std::string text;
    char part[1 << 14];
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
        pollfd ready{file, POLLIN, 0};
        const int found = left.count() > 0 ? poll(&ready, 1, static_cast<int>(left.count())) : 0;
        const ssize_t n = found > 0 ? read(file, part, sizeof part) : found;
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return text;
        }
        text.append(part, n > 0 ? static_cast<std::size_t>(n) : 0);
    }
}

[[noreturn]] void be_child(int file, const std::function<std::string()> &work) {
    // A crash is expected: it leaves no file. The parent may ignore the signal of the soft limit.
    std::signal(SIGXCPU, SIG_DFL);
    limit(RLIMIT_CORE, 0, 0);
    limit(RLIMIT_CPU, SECONDS, SECONDS + 1);
    if (const rlim_t now = data_bytes()) {
        const rlim_t most = now + (rlim_t{1} << 30);
        limit(RLIMIT_DATA, most, most);
    }
    std::string answer;
    try {
        answer = DONE + work() + END;
    } catch (const std::exception &e) {
        answer = std::string(1, THREW) + e.what() + END;
    } catch (...) {
        answer = std::string(1, THREW) + "unknown error" + END;
    }
    // No destructors: they are the parent's.
    _exit(write_all(file, answer) ? 0 : 1);
}

}  // namespace

std::string in_child(const std::string &what, const std::function<std::string()> &work) {
    const auto system_error = [&] { return UserError(what + ": " + std::strerror(errno)); };
    int pipes[2];
    if (pipe(pipes) != 0) {
        throw system_error();
    }
    const pid_t child = fork();
    if (child < 0) {
        const UserError error = system_error();
        close(pipes[0]);
        close(pipes[1]);
        throw error;
    }
    if (child == 0) {
        close(pipes[0]);
        be_child(pipes[1], work);
    }
    close(pipes[1]);
    const std::string answer = read_all(pipes[0]);
    close(pipes[0]);
    // It has answered, crashed, or takes too long.
    kill(child, SIGKILL);
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    if (answer.size() < 2 || answer.back() != END) {
        throw UserError(what + " crashes, or takes more than " + std::to_string(SECONDS) +
                        " seconds of the processor or 1 GiB");
    }
    const std::string text = answer.substr(1, answer.size() - 2);
    if (answer[0] != DONE) {
        throw UserError(what + ": " + text);
    }
    return text;
}

#else

std::string in_child(const std::string &what, const std::function<std::string()> &work) {
    try {
        return work();
    } catch (const std::exception &e) {
        throw UserError(what + ": " + e.what());
    }
}

#endif
