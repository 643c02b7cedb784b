#include "statement.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace ptx {

std::string trim(const std::string& s) {
    size_t begin = s.find_first_not_of(" \t\r\n"), last = s.find_last_not_of(" \t\r\n");
    return begin == std::string::npos ? "" : s.substr(begin, last - begin + 1);
}

std::vector<std::string> split(const std::string& text, char by) {
    std::vector<std::string> parts(1);
    for (char c : text) {
        if (c == by) {
            parts.emplace_back();
        } else {
            parts.back() += c;
        }
    }
    return parts;
}

std::vector<std::string> elements_of(const std::string& operand) {
    if (operand.front() != '{') return {operand};
    std::vector<std::string> elements;
    for (const std::string& e : split(operand.substr(1, operand.size() - 2), ',')) elements.push_back(trim(e));
    return elements;
}

u32 bytes_of(const std::string& type) {
    if (type == "bf16") return 2;
    int bits = type.size() < 2 ? 0 : std::atoi(type.c_str() + 1);
    if (bits != 8 && bits != 16 && bits != 32 && bits != 64) throw std::runtime_error("PTX: unknown type " + type);
    return static_cast<u32>(bits / 8);
}

Statement::Statement(const std::string& whole) : text(whole) {
    size_t space = text.find_first_of(" \t");
    name = text.substr(0, space);
    parts = split(name, '.');
    std::string rest = space == std::string::npos ? "" : trim(text.substr(space)), now;
    int depth = 0;
    for (char c : rest) {
        depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
        if (c == ',' && depth == 0) {
            operands.push_back(trim(now));
            now.clear();
        } else {
            now += c;
        }
    }
    if (!trim(now).empty()) operands.push_back(trim(now));
}

bool Statement::has(const char* part) const { return std::find(parts.begin(), parts.end(), part) != parts.end(); }

void Statement::fail(const std::string& what) const { throw std::runtime_error(what + ": " + text); }

void Statement::expect_operands(size_t n) const {
    if (operands.size() != n) fail("number of operands");
}

}  // namespace ptx
