// The names of a kernel: registers, constants, its parameter, shared memory.
#pragma once

#include <map>
#include <string>

#include "statement.hpp"

namespace ptx {

bool is_immediate(const std::string& text);
u64 immediate(const std::string& text);

class Symbols {
public:
    explicit Symbols(Kernel& kernel) : kernel_(kernel) {}

    // .reg .b32 %r<10>
    void declare(const std::string& statement);
    // Braces around statements: what is declared inside ends with them.
    void open_scope() { scopes_.push_back(registers_); }
    void close_scope();
    bool in_scope() const { return !scopes_.empty(); }
    void declare_parameter(const std::string& name) { parameter_ = name; }

    // A place in the register file that holds a value in all lanes.
    u32 constant(u32 bytes, u64 value);

    // Operand `at` of an instruction: a register of exactly as many bytes; or for a source an immediate or an address.
    void destination(Instruction& i, u32 at, const std::string& name, u32 bytes, const Statement& s) const;
    void source(Instruction& i, u32 at, const std::string& name, u32 bytes, const Statement& s);
    // A register of any width.
    void any_register(Instruction& i, u32 at, const std::string& name, const Statement& s) const;
    void predicate(Instruction& i, u32 at, const std::string& name, const Statement& s) const;
    // [register], [register+1], [symbol+1]
    void address(Instruction& i, const std::string& operand, const Statement& s);

private:
    struct Register {
        u32 place;
        u32 bytes;  // 0: a predicate
    };
    Kernel& kernel_;
    std::map<std::string, Register> registers_;
    std::vector<std::map<std::string, Register>> scopes_;  // what there was outside
    std::map<std::pair<u32, u64>, u32> constants_;
    std::string parameter_;

    u32 reserve(u32 bytes);
};

}  // namespace ptx
