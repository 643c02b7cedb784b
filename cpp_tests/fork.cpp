// fork(2): a child has none of its parent's threads. A cache that uses the library's threads works in both processes.
#include <gtest/gtest.h>
#include <sched.h>
#include <sinkcache.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <functional>
#include <string>
#include <thread>
#include <vector>

// A child inherits the locks of the sanitizers' own allocator as they are.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SKIP_UNDER_SANITIZERS() GTEST_SKIP() << "skipped: a sanitizer's allocator does not survive fork(2)"
#else
#define SKIP_UNDER_SANITIZERS() static_cast<void>(0)
#endif

namespace {

constexpr std::uint32_t HEADS = 2, DIM = 64;
constexpr std::int32_t TOKENS = 96;

/** Rows of q, k and v. */
std::vector<float> rows(int seed) {
    std::vector<float> x(std::size_t{TOKENS} * HEADS * DIM);
    for (std::size_t i = 0; i < x.size(); i++) {
        x[i] = static_cast<float>((i * 37 + static_cast<std::size_t>(seed) * 11) % 64) / 32.0f - 1.0f;
    }
    return x;
}

std::vector<float> step(sinkcache::Cache &cache, int seed) {
    const auto x = rows(seed);
    std::vector<float> out(x.size());
    cache.step(0, {{0}, {TOKENS}}, {{x.data()}, {x.data()}}, {{x.data()}, {out.data()}});
    return out;
}

sinkcache::Config config(std::uint32_t n_threads) {
    return sinkcache::Config().heads(HEADS, HEADS, DIM).threads(n_threads).layers(1, sinkcache::Layer(4, 700));
}

/** What the child does; its exit status. */
int run_child(sinkcache::Cache &cache, sinkcache::Cache &alone) {
    try {
        bool same = true;
        for (int seed = 20; seed < 24; seed++) {
            same = step(cache, seed) == step(alone, seed) && same;
        }
        cache.close();
        alone.close();
        return same ? 0 : 1;
    } catch (const sinkcache::Error &) {
        return 2;
    }
}

TEST(Fork, CachesWorkInParentAndChild) {
    sinkcache::Cache cache(config(3)), alone(config(1));
    for (int seed = 0; seed < 12; seed++) {
        EXPECT_EQ(step(cache, seed), step(alone, seed));
    }
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        _exit(run_child(cache, alone));
    }
    for (int seed = 30; seed < 34; seed++) {
        EXPECT_EQ(step(cache, seed), step(alone, seed));
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    cache.close();
    alone.close();
}

/** Ends the process with a status of its own if it hangs: the first process of a namespace would ignore SIGALRM. */
void limit_time() {
    std::signal(SIGALRM, [](int) { _exit(99); });
    alarm(60);
}

/** Runs `work` until it is destroyed. */
class Loop {
public:
    explicit Loop(std::function<void()> work) : thread_([this, work = std::move(work)] {
        while (!stop_) {
            work();
        }
    }) {}
    ~Loop() {
        stop_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

/** One member's part of a team's step, if the team is ready for it. */
void step_part(skc_cache *cache, std::uint32_t ith, const std::vector<float> &x, std::vector<float> &out) {
    static const std::int32_t seq = 0, n = 1;
    skc_step_args a{};
    a.struct_size = sizeof a;
    a.n_entries = 1;
    a.seq_ids = &seq;
    a.n_tokens = &n;
    a.q = a.k = a.v = x.data();
    a.out = out.data();
    skc_step_part(cache, &a, ith, 2);
}

// Other threads are anywhere inside the library when the process forks. The child can make, use and destroy caches;
// those that another thread was using stay busy.
TEST(Fork, NoChildHangsWhateverOtherThreadsDo) {
    SKIP_UNDER_SANITIZERS();
    sinkcache::Cache mine(config(2)), stepped(config(2)), appended(config(1)), team(config(2));
    const auto x = rows(1);
    std::vector<float> out(x.size());
    const auto append = [&] { appended.append_kv(0, {{0}, {TOKENS}}, {{x.data()}, {x.data()}}); };
    Loop step_loop([&] { step(stepped, 1); }), append_loop(append);
    Loop create_loop([] { sinkcache::Cache temporary(config(2)); });
    Loop refused_loop([] { skc_destroy_cache(nullptr); });
    Loop first([&] { step_part(team.handle(), 0, x, out); }), second([&] { step_part(team.handle(), 1, x, out); });
    for (int i = 0; i < 1000; i++) {
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            limit_time();
            sinkcache::Cache fresh(config(2));
            const bool same = step(fresh, i) == step(mine, i);
            fresh.close();
            mine.close();
            // Each may have been in use.
            step_part(team.handle(), 0, x, out);
            skc_destroy_cache(stepped.handle());
            skc_destroy_cache(appended.handle());
            skc_destroy_cache(team.handle());
            _exit(same ? 0 : 1);
        }
        int status = -1;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        ASSERT_TRUE(WIFEXITED(status)) << "child " << i << " was killed";
        ASSERT_NE(WEXITSTATUS(status), 99) << "child " << i << " hangs";
        ASSERT_EQ(WEXITSTATUS(status), 0) << "child " << i;
    }
}

/** A log callback that forks. */
struct Forker {
    std::function<void()> child;
    int failed = -1;

    static void log(void *user, std::uint32_t level, const char *) noexcept {
        auto &f = *static_cast<Forker *>(user);
        if (level != SKC_LOG_WARN) {
            return;
        }
        const pid_t child = fork();
        if (child == 0) {
            limit_time();
            f.child();
            _exit(0);
        }
        int status = -1;
        f.failed = waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 98;
    }
};

// The call that forks goes on in the child; caches that other threads were using are busy there.
TEST(Fork, ACallbackMayFork) {
    SKIP_UNDER_SANITIZERS();
    sinkcache::Cache team(config(2));
    const auto x = rows(1);
    std::vector<float> out(x.size());
    Forker forker;
    sinkcache::Cache mine(config(1).log(Forker::log, &forker));
    forker.child = [&] {
        step_part(team.handle(), 0, x, out);
        skc_destroy_cache(team.handle());
        // Inside a call on it: refused, and usable once the callback has returned.
        if (skc_destroy_cache(mine.handle()) != SKC_STATUS_BUSY || skc_destroy_cache(nullptr) == SKC_STATUS_OK) {
            _exit(1);
        }
        step(mine, 1);
    };
    Loop first([&] { step_part(team.handle(), 0, x, out); }), second([&] { step_part(team.handle(), 1, x, out); });
    for (int i = 0; i < 200; i++) {
        skc_step_args refused{};
        refused.struct_size = sizeof refused;
        refused.layer = 9;
        ASSERT_NE(skc_step(mine.handle(), &refused), SKC_STATUS_OK);
        ASSERT_EQ(forker.failed, 0) << "child " << i;
    }
}

// The same cache is used by others: the call ends in the child, and the cache is lost there.
TEST(Fork, ACallbackMayForkWhileOthersUseItsCache) {
    SKIP_UNDER_SANITIZERS();
    Forker forker;
    sinkcache::Cache team(config(2).log(Forker::log, &forker));
    const auto x = rows(1);
    std::vector<float> out(x.size());
    skc_step_args refused{};
    refused.struct_size = sizeof refused;
    refused.layer = 9;
    forker.child = [&] {
        // Refused by a busy or a lost cache, or because a callback of a call on it makes them.
        const skc_status step = skc_step(team.handle(), &refused);
        auto abort = skc_abort_step_args{};
        abort.struct_size = sizeof abort;
        skc_abort_step(team.handle(), &abort);
        if (step == SKC_STATUS_OK || skc_destroy_cache(team.handle()) != SKC_STATUS_BUSY) {
            _exit(1);
        }
    };
    Loop one([&] { step_part(team.handle(), 0, x, out); }), two([&] { step_part(team.handle(), 1, x, out); });
    for (int i = 0; i < 200; i++) {
        ASSERT_NE(skc_step(team.handle(), &refused), SKC_STATUS_OK);
        ASSERT_LE(forker.failed, 0) << "child " << i;
    }
}

/** A parallel loop that lets another thread fork before it runs its tasks. */
struct SlowLoop {
    std::atomic<bool> inside{false}, go_on{false};

    static void run(void *user, std::uint32_t n, skc_task_fn task, void *data) noexcept {
        auto &loop = *static_cast<SlowLoop *>(user);
        loop.inside = true;
        while (!loop.go_on) {
            std::this_thread::yield();
        }
        for (std::uint32_t i = 0; i < n; i++) {
            task(data, i);
        }
    }
};

/** A log callback that forks once and returns in both processes. */
struct Splitter {
    pid_t child = -1;

    static void log(void *user, std::uint32_t level, const char *) noexcept {
        auto &s = *static_cast<Splitter *>(user);
        if (level == SKC_LOG_WARN && s.child == -1) {
            s.child = fork();
        }
    }
};

// Lost in the child, and in a child of the child.
TEST(Fork, ACacheInUseStaysLostAfterACallOfItsOwn) {
    SlowLoop loop;
    Splitter splitter;
    sinkcache::Cache cache(config(2).parallel_for(SlowLoop::run, &loop).log(Splitter::log, &splitter));
    std::thread user([&] { step(cache, 1); });
    while (!loop.inside) {
        std::this_thread::yield();
    }
    skc_step_args refused{};
    refused.struct_size = sizeof refused;
    const skc_status status = skc_step(cache.handle(), &refused);
    if (splitter.child == 0) {
        limit_time();
        // Not only busy, as a cache is that another thread uses.
        const auto is_lost = [&] {
            return skc_step(cache.handle(), &refused) == SKC_STATUS_BUSY &&
                   std::string(skc_last_error()).find("was forked") != std::string::npos;
        };
        const bool lost =
            status == SKC_STATUS_BUSY && skc_destroy_cache(cache.handle()) == SKC_STATUS_BUSY && is_lost();
        const pid_t grandchild = fork();
        if (grandchild == 0) {
            _exit(is_lost() ? 0 : 1);
        }
        int ended = -1;
        _exit(lost && waitpid(grandchild, &ended, 0) == grandchild && ended == 0 ? 0 : 1);
    }
    int ended = -1;
    EXPECT_EQ(waitpid(splitter.child, &ended, 0), splitter.child);
    loop.go_on = true;
    user.join();
    EXPECT_TRUE(WIFEXITED(ended) && WEXITSTATUS(ended) == 0) << ended;
}

/** In the first process of a pid namespace: makes a cache with threads, and uses it in a child that is the first of
 *  another namespace, and so has the same process id. */
int use_in_namesake() {
    sinkcache::Cache cache(config(3)), alone(config(1));
    for (int seed = 0; seed < 4; seed++) {
        step(cache, seed);
        step(alone, seed);
    }
    const pid_t parent = getpid();
    if (unshare(CLONE_NEWPID) != 0) {
        return 77;
    }
    const pid_t child = fork();
    if (child == 0) {
        limit_time();
        _exit(getpid() == parent ? run_child(cache, alone) : 3);
    }
    int status = -1;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 4;
}

TEST(Fork, AChildMayHaveItsParentsProcessId) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) {
            _exit(77);
        }
        const pid_t first = fork();
        if (first == 0) {
            limit_time();
            _exit(use_in_namesake());
        }
        int status = -1;
        _exit(waitpid(first, &status, 0) == first && WIFEXITED(status) ? WEXITSTATUS(status) : 5);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << status;
    if (WEXITSTATUS(status) == 77) {
        GTEST_SKIP() << "skipped: this process may not make a pid namespace";
    }
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
