// Lines that are read from users, and lines that are shown to them.
#include "command_line.hpp"
#include "line_reader.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <vector>

namespace {

using programs::LineReader;
using programs::one_line;

std::vector<std::string> all_lines(const std::string &text, std::size_t max_bytes = LineReader::MAX_BYTES) {
    std::istringstream in(text);
    LineReader reader(in, max_bytes);
    std::vector<std::string> lines;
    while (reader.next()) {
        lines.push_back(reader.text() + (reader.cut() ? "[cut]" : ""));
    }
    return lines;
}

using Lines = std::vector<std::string>;

}  // namespace

TEST(Lines, EndWithLfOrCrlfOrTheFile) {
    EXPECT_EQ(all_lines(""), Lines());
    EXPECT_EQ(all_lines("a\nb\r\n\r\n\nc"), (Lines{"a", "b", "", "", "c"}));
    EXPECT_EQ(all_lines("a\r"), Lines{"a"});
    // Inside a line a carriage return is no end.
    EXPECT_EQ(all_lines("a\rb\n"), Lines{"a\rb"});
}

TEST(Lines, AByteOrderMarkIsNoText) {
    EXPECT_EQ(all_lines("\xEF\xBB\xBF" "a\nb"), (Lines{"a", "b"}));
    EXPECT_EQ(all_lines("\xEF\xBB\xBF\r\nb"), (Lines{"", "b"}));
    // Only at the beginning.
    EXPECT_EQ(all_lines("a\n\xEF\xBB\xBF" "b"), (Lines{"a", "\xEF\xBB\xBF" "b"}));
    EXPECT_EQ(all_lines("\xEF\xBB"), Lines{"\xEF\xBB"});
}

TEST(Lines, LongOnesAreCutAndTheNextIsWhole) {
    EXPECT_EQ(all_lines("abcd\nabcde\nabcdefg\nab\n", 4), (Lines{"abcd", "abcd[cut]", "abcd[cut]", "ab"}));
}

TEST(Lines, AreNumberedFromOne) {
    std::istringstream in("a\n\nc");
    LineReader reader(in);
    for (std::size_t n = 1; reader.next(); n++) {
        EXPECT_EQ(reader.number(), n);
    }
    EXPECT_EQ(reader.number(), 3U);
}

TEST(Lines, OfWhatCannotBeReadAreAnError) {
    std::ifstream directory(testing::TempDir());
    LineReader reader(directory);
    EXPECT_THROW(reader.next(), std::runtime_error);
    // It has no lines, and no end.
    std::ifstream zeros("/dev/zero");
    LineReader endless(zeros, 1000);
    EXPECT_THROW(endless.next(), std::runtime_error);
}

TEST(OneLine, EscapesControlCharacters) {
    EXPECT_EQ(one_line("a\nb\x1b[2J\x7f"), "a\\x0Ab\\x1B[2J\\x7F");
    // U+009B begins a sequence on some terminals; U+00E9 and U+00A0 are text.
    EXPECT_EQ(one_line("x\xC2\x9B" "2J \xC3\xA9\xC2\xA0"), "x\\xC2\\x9B2J \xC3\xA9\xC2\xA0");
    EXPECT_EQ(one_line(std::string("a\0b", 3)), "a\\x00b");
    EXPECT_EQ(one_line("\xC3\xA4"), "\xC3\xA4");
}

TEST(OneLine, CutsBetweenCharacters) {
    EXPECT_EQ(one_line("abcdef", 6), "abcdef");
    EXPECT_EQ(one_line("abcdefg", 6), "abcdef...");
    EXPECT_EQ(one_line("abcde\xC3\xA4", 6), "abcde...");
    // Not UTF-8: cut all the same.
    EXPECT_EQ(one_line(std::string(10, '\x80'), 6).size(), 2U + 3U);
    EXPECT_EQ(one_line(std::string(10'000'000, 'x')).size(), programs::SHOWN_BYTES + 3);
}
