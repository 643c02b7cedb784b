// parallel_for callbacks, correct and incorrect ones, and the library's threads: results as with one thread.
#include "support/host.hpp"

#include <cstdlib>
#include <thread>

namespace {

using Loop = skc_parallel_for_fn;

void in_order(void *, std::uint32_t n, skc_task_fn task, void *data) {
    for (std::uint32_t i = 0; i < n; i++) {
        task(data, i);
    }
}

void reversed(void *, std::uint32_t n, skc_task_fn task, void *data) {
    while (n-- > 0) {
        task(data, n);
    }
}

void twice(void *, std::uint32_t n, skc_task_fn task, void *data) {
    in_order(nullptr, n, task, data);
    reversed(nullptr, n, task, data);
}

void none(void *, std::uint32_t, skc_task_fn, void *) {}

void only_the_middle(void *, std::uint32_t n, skc_task_fn task, void *data) {
    task(data, n / 2);
}

void out_of_range(void *, std::uint32_t n, skc_task_fn task, void *data) {
    for (std::uint32_t i : {n, n + 1, UINT32_MAX, 0u}) {
        task(data, i);
    }
}

void on_other_threads(void *, std::uint32_t n, skc_task_fn task, void *data) {
    std::vector<std::thread> threads;
    for (std::uint32_t i = 0; i < n; i++) {
        threads.emplace_back(task, data, i);
    }
    for (auto &thread : threads) {
        thread.join();
    }
}

void all_on_all_threads(void *, std::uint32_t n, skc_task_fn task, void *data) {
    std::vector<std::thread> threads;
    for (std::uint32_t i = 0; i < 3; i++) {
        threads.emplace_back(i % 2 ? in_order : reversed, nullptr, n, task, data);
    }
    for (auto &thread : threads) {
        thread.join();
    }
}

const std::pair<const char *, Loop> LOOPS[] = {
    {"library's threads", nullptr},        {"in order", in_order},
    {"reversed", reversed},                {"twice", twice},
    {"none", none},                        {"only the middle", only_the_middle},
    {"out of range", out_of_range},        {"on other threads", on_other_threads},
    {"all on all threads", all_on_all_threads},
};

/** Two sequences through two layers, by skc_step and by skc_append_kv with skc_attend. */
host::Results run(const sinkcache::Config &config) {
    sinkcache::Cache cache(config);
    host::Results all;
    for (std::uint32_t round = 0; round < 4; round++) {
        for (std::uint32_t layer = 0; layer < 2; layer++) {
            all.add(host::step(cache.handle(), host::rows(30, round), layer, {1, 0}, {23, 7}));
            const host::Rows rows = host::rows(9, round + 50);
            const host::Ints ids{0, 1}, counts{1, 8};
            host::Results results = host::Results::of(9);
            const auto append = host::append_args(layer, ids, counts, rows);
            const auto attend = host::attend_args(layer, ids, counts, rows, results);
            EXPECT_OK(skc_append_kv(cache.handle(), &append));
            EXPECT_OK(skc_attend(cache.handle(), &attend));
            all.add(results);
        }
    }
    return all;
}

TEST(ParallelFor, EveryLoopGivesTheSameResults) {
    const host::Results want = run(host::config(2, 2));
    EXPECT_TRUE(want.finite());
    for (const auto &[name, loop] : LOOPS) {
        for (std::uint32_t n : {1u, 2u, 3u, 7u}) {
            sinkcache::Config config = host::config(2, 2);
            config.threads(n).raw().parallel_for = loop;
            EXPECT_EQ(run(config), want) << name << ", " << n << " tasks";
        }
    }
}

// Enough rows that append is divided among threads, too.
TEST(ParallelFor, LargeWork) {
    auto large = [](Loop loop, std::uint32_t n) {
        sinkcache::Config c;
        c.heads(4, 2, 128).layers(1, sinkcache::Layer(4, 100)).max_chunk(400).threads(n).raw().parallel_for = loop;
        sinkcache::Cache cache(c);
        const std::size_t tokens = 400;
        const auto q = host::noise(tokens * 512, 1), k = host::noise(tokens * 256, 2), v = host::noise(tokens * 256, 3);
        std::vector<float> out(tokens * 512, NAN);
        cache.append_kv(0, {{0}, {400}}, {{k.data()}, {v.data()}});
        cache.attend(0, {{0}, {400}}, {{q.data()}, {out.data()}});
        return out;
    };
    const auto want = large(nullptr, 1);
    for (const auto &[name, loop] : LOOPS) {
        EXPECT_EQ(large(loop, 3), want) << name;
    }
}

TEST(ParallelFor, UserAndCount) {
    struct User {
        std::uint32_t most = 0;
        static void loop(void *user, std::uint32_t n, skc_task_fn task, void *data) noexcept {
            auto &u = *static_cast<User *>(user);
            u.most = std::max(u.most, n);
            in_order(nullptr, n, task, data);
        }
    } user;
    sinkcache::Config config = host::config(2, 2);
    config.threads(5).parallel_for(User::loop, &user);
    run(config);
    EXPECT_GE(user.most, 1u);
    EXPECT_LE(user.most, 5u);
}

}  // namespace
