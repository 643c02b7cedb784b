// The log callback, and silence without it.
#include "support/host.hpp"

namespace {

struct Log {
    std::vector<std::pair<std::uint32_t, std::string>> lines;

    static void line(void *user, std::uint32_t level, const char *text) noexcept {
        static_cast<Log *>(user)->lines.emplace_back(level, text);
    }
};

TEST(Log, GetsLines) {
    Log log;
    auto config = host::config();
    config.log(Log::line, &log);
    {
        sinkcache::Cache cache(config);
        host::step(cache.handle(), host::rows(5, 1));
        EXPECT_EQ(host::reset(cache.handle(), 123), SKC_STATUS_OUT_OF_RANGE);
    }
    ASSERT_EQ(log.lines.size(), 3u);
    EXPECT_EQ(log.lines[0].first, std::uint32_t{SKC_LOG_INFO});
    EXPECT_NE(log.lines[0].second.find("created"), std::string::npos);
    EXPECT_EQ(log.lines[1].first, std::uint32_t{SKC_LOG_WARN});
    EXPECT_NE(log.lines[1].second.find("123"), std::string::npos);
    EXPECT_EQ(log.lines[2].first, std::uint32_t{SKC_LOG_INFO});
    EXPECT_NE(log.lines[2].second.find("destroyed"), std::string::npos);
}

TEST(Log, IsSilentByDefault) {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    {
        sinkcache::Cache cache(host::config().threads(2));
        host::step(cache.handle(), host::rows(5, 1));
        host::reset(cache.handle(), 123);
        skc_step(cache.handle(), nullptr);
        skc_destroy_cache(nullptr);
    }
    EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
