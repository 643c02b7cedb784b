#include "symbols.hpp"

#include <cctype>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace ptx {

bool is_immediate(const std::string& s) {
    auto digit = [&](size_t at) { return s.size() > at && std::isdigit(static_cast<unsigned char>(s[at])); };
    return digit(0) || (!s.empty() && s[0] == '-' && digit(1));
}

u64 immediate(const std::string& s) {
    auto starts = [&](const char* with) { return s.compare(0, 2, with) == 0; };
    if (s.size() == 10 && (starts("0f") || starts("0F"))) return std::stoull(s.substr(2), nullptr, 16);
    std::string digits = s;
    if (!digits.empty() && digits.back() == 'U') digits.pop_back();
    return digits[0] == '-' ? static_cast<u64>(std::stoll(digits, nullptr, 0)) : std::stoull(digits, nullptr, 0);
}

u32 Symbols::reserve(u32 bytes) {
    u32 place = kernel_.register_bytes;
    kernel_.register_bytes += (32 * bytes + 63) / 64 * 64;
    return place;
}

void Symbols::declare(const std::string& statement) {
    std::istringstream in(statement);
    std::string directive, type, names;
    in >> directive >> type;
    std::getline(in, names);
    auto add = [&](const std::string& name) {
        if (type == ".pred") {
            registers_[name] = {kernel_.n_predicates++, 0};
        } else {
            u32 bytes = bytes_of(type.substr(1));
            registers_[name] = {reserve(bytes), bytes};
        }
    };
    for (const std::string& part : split(names, ',')) {
        std::string name = trim(part);
        size_t open = name.find('<');
        if (open == std::string::npos) {
            add(name);
            continue;
        }
        int n = std::atoi(name.c_str() + open + 1);
        for (int k = 0; k < n; ++k) add(name.substr(0, open) + std::to_string(k));
    }
}

void Symbols::close_scope() {
    if (scopes_.empty()) throw std::runtime_error("a brace that nothing opens");
    registers_ = std::move(scopes_.back());
    scopes_.pop_back();
}

u32 Symbols::constant(u32 bytes, u64 value) {
    if (bytes < 8) value &= (u64{1} << 8 * bytes) - 1;
    auto [known, is_new] = constants_.try_emplace({bytes, value}, 0);
    if (is_new) {
        known->second = reserve(bytes);
        kernel_.constants.push_back({known->second, static_cast<u8>(bytes), value});
    }
    return known->second;
}

void Symbols::any_register(Instruction& i, u32 at, const std::string& name, const Statement& s) const {
    auto it = registers_.find(name);
    if (it == registers_.end() || it->second.bytes == 0) s.fail("no register " + name);
    i.operands[at] = it->second.place;
    i.width[at] = static_cast<u8>(it->second.bytes);
}

void Symbols::destination(Instruction& i, u32 at, const std::string& name, u32 bytes, const Statement& s) const {
    any_register(i, at, name, s);
    if (i.width[at] != bytes) s.fail("operand " + name + " has another width");
}

void Symbols::source(Instruction& i, u32 at, const std::string& name, u32 bytes, const Statement& s) {
    if (registers_.count(name)) return destination(i, at, name, bytes, s);
    bool symbol = name == "skc_shared" || name == parameter_;
    if (symbol && bytes != 4 && bytes != 8) s.fail("width of an address");
    if (!symbol && !is_immediate(name)) s.fail("operand " + name);
    u64 value = name == "skc_shared" ? kSharedBase : symbol ? 0 : immediate(name);
    i.operands[at] = constant(bytes, value);
    i.width[at] = static_cast<u8>(bytes);
}

void Symbols::predicate(Instruction& i, u32 at, const std::string& name, const Statement& s) const {
    auto it = registers_.find(name);
    if (it == registers_.end() || it->second.bytes != 0) s.fail("no predicate " + name);
    i.operands[at] = it->second.place;
}

void Symbols::address(Instruction& i, const std::string& operand, const Statement& s) {
    if (operand.size() < 3 || operand.front() != '[' || operand.back() != ']') s.fail("address " + operand);
    std::string inner = trim(operand.substr(1, operand.size() - 2));
    size_t plus = inner.find('+');
    std::string base = trim(inner.substr(0, plus));
    i.offset = plus == std::string::npos ? 0 : static_cast<i64>(immediate(trim(inner.substr(plus + 1))));
    if (registers_.count(base)) {
        any_register(i, kAddress, base, s);
        if (i.width[kAddress] < 4) s.fail("width of an address");
        i.wide_address = i.width[kAddress] == 8;
    } else if (base == "skc_shared" && i.space == Space::shared) {
        i.operands[kAddress] = constant(8, kSharedBase);
    } else if (base == parameter_ && i.space == Space::param) {
        i.operands[kAddress] = constant(8, 0);
    } else {
        s.fail("address " + operand);
    }
}

}  // namespace ptx
