// A statement of PTX, taken apart.
#pragma once

#include <string>
#include <vector>

#include "module.hpp"

namespace ptx {

std::string trim(const std::string& text);
std::vector<std::string> split(const std::string& text, char by);
// The elements of "{a, b}"; of anything else, itself.
std::vector<std::string> elements_of(const std::string& operand);
u32 bytes_of(const std::string& type);

struct Statement {
    std::string text;
    std::string name;                   // ld.global.u32
    std::vector<std::string> parts;     // ld, global, u32
    std::vector<std::string> operands;  // at commas outside braces and brackets

    // Without its guard.
    explicit Statement(const std::string& text);
    bool has(const char* part) const;
    [[noreturn]] void fail(const std::string& what) const;
    void expect_operands(size_t n) const;
};

}  // namespace ptx
