#include "child.hpp"

#include "engine.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>

#ifdef __unix__
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr char DONE = 'd', THREW = 't';

/** Less than there is: nothing is raised. */
void limit(int resource, rlim_t most) {
    rlimit now{};
    if (getrlimit(static_cast<decltype(RLIMIT_CPU)>(resource), &now) == 0) {
        now.rlim_cur = std::min(now.rlim_max, most);
        setrlimit(static_cast<decltype(RLIMIT_CPU)>(resource), &now);
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

std::string read_all(int file) {
    std::string text;
    char part[1 << 14];
    for (ssize_t n = 0; (n = read(file, part, sizeof part)) != 0;) {
        if (n < 0 && errno != EINTR) {
            break;
        }
        text.append(part, n > 0 ? static_cast<std::size_t>(n) : 0);
    }
    return text;
}

[[noreturn]] void be_child(int file, const std::function<std::string()> &work) {
    // A crash is expected: it leaves no file.
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_CPU, 20);
    if (const rlim_t now = data_bytes()) {
        limit(RLIMIT_DATA, now + (rlim_t{1} << 30));
    }
    std::string answer;
    try {
        answer = DONE + work();
    } catch (const std::exception &e) {
        answer = std::string(1, THREW) + e.what();
    } catch (...) {
        answer = std::string(1, THREW) + "unknown error";
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
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || answer.empty()) {
        throw UserError(what + " crashes, or takes more than 20 seconds or 1 GiB");
    }
    if (answer[0] != DONE) {
        throw UserError(what + ": " + answer.substr(1));
    }
    return answer.substr(1);
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
