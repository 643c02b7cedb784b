#include "instruction.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>

#include "instruction_table.hpp"
#include "warp.hpp"

namespace ptx {
namespace {

struct Parser {
    const Statement& s;
    Symbols& symbols;
    Instruction& i;
    std::string& label;

    const std::string& operand(size_t at) const { return s.operands.at(at); }
    const std::string& part(size_t at) const {
        if (at >= s.parts.size()) s.fail("unknown form");
        return s.parts[at];
    }
    void destination(u32 at, const std::string& name, u32 bytes) { symbols.destination(i, at, name, bytes, s); }
    void source(u32 at, const std::string& name, u32 bytes) { symbols.source(i, at, name, bytes, s); }
    void predicate(u32 at, const std::string& name) { symbols.predicate(i, at, name, s); }

    // Instructions whose operands are registers and immediates of fixed widths.
    void from_table(const Entry& entry) {
        s.expect_operands(std::strlen(entry.operands));
        for (u32 k = 0; entry.operands[k]; ++k) {
            u32 bytes = entry.operands[k] == 'h' ? 2 : entry.operands[k] == 'w' ? 4 : 8;
            if (entry.operands[k] == 'p') {
                predicate(k, operand(k));
            } else if (k == 0) {
                destination(k, operand(k), bytes);
            } else {
                source(k, operand(k), bytes);
            }
        }
        i.run = entry.run;
    }

    // A constant predicate is the comparison of two constants: 0 = 0, or 0 = 1.
    void constant_predicate() {
        predicate(0, operand(0));
        i.run = table().at("setp.eq.u32").run;
        i.operands[1] = symbols.constant(4, 0);
        i.operands[2] = symbols.constant(4, immediate(operand(1)) ? 0 : 1);
    }

    void branch() {
        s.expect_operands(1);
        i.flow = Flow::branch;
        label = operand(0);
    }

    void exit() { i.flow = Flow::exit; }

    void move() {
        s.expect_operands(2);
        u32 bytes = bytes_of(part(1));
        bool split = operand(0)[0] == '{', join = operand(1)[0] == '{';
        if (split || join) {
            auto halves = elements_of(operand(split ? 0 : 1));
            if (bytes < 4 || halves.size() != 2 || (split && join)) s.fail("unknown form");
            if (split) {
                destination(0, halves[0], bytes / 2);
                destination(1, halves[1], bytes / 2);
                source(2, operand(1), bytes);
            } else {
                destination(0, operand(0), bytes);
                source(1, halves[0], bytes / 2);
                source(2, halves[1], bytes / 2);
            }
            i.run = halves_handler(split, bytes);
            return;
        }
        destination(0, operand(0), bytes);
        if (operand(1)[0] == '%' && special_register(operand(1), i.mode)) {
            if (bytes != 4) s.fail("width of a special register");
            i.run = special;
            return;
        }
        source(1, operand(1), bytes);
        i.run = move_handler(bytes);
    }

    // ld and st. 8-bit elements live in 16-bit registers; a register may be wider than the element, not narrower.
    void memory() {
        s.expect_operands(2);
        bool store = part(0) == "st";
        i.count = 1;
        for (size_t k = 1; k + 1 < s.parts.size(); ++k) {
            const std::string& q = s.parts[k];
            if (q == "global") {
                i.space = Space::global;
            } else if (q == "shared") {
                i.space = Space::shared;
            } else if (q == "shared::cluster" && !store) {
                i.space = Space::shared;
                i.cluster = true;
            } else if (q == "param") {
                i.space = Space::param;
            } else if (q == "v2" || q == "v4") {
                i.count = q == "v2" ? 2 : 4;
            } else if (q == "relaxed") {
                i.ordering = Ordering::relaxed;
            } else if (q != "sys" || i.ordering == Ordering::weak) {
                s.fail("unknown qualifier " + q);
            }
        }
        i.bytes = static_cast<u8>(bytes_of(s.parts.back()));
        i.sign = s.parts.back()[0] == 's';
        auto elements = elements_of(operand(store ? 1 : 0));
        if (elements.size() != i.count) s.fail("elements of a vector");
        for (u32 k = 0; k < elements.size(); ++k) {
            if (store && is_immediate(elements[k])) {
                source(k, elements[k], std::max<u32>(i.bytes, 2));
            } else {
                symbols.any_register(i, k, elements[k], s);
                if (i.width[k] < i.bytes) s.fail("register narrower than the element");
            }
        }
        symbols.address(i, operand(store ? 0 : 1), s);
        i.run = store ? store_handler() : load_handler(i);
    }

    void convert() {
        s.expect_operands(2);
        Conversion c;
        if (s.parts.size() < 3) s.fail("unknown form");
        c.to = s.parts[s.parts.size() - 2];
        c.from = s.parts.back();
        for (size_t k = 1; k + 2 < s.parts.size(); ++k) {
            if (s.parts[k] == "sat") {
                c.saturate = true;
            } else if (c.rounding.empty()) {
                c.rounding = s.parts[k];
            } else {
                s.fail("unknown form");
            }
        }
        symbols.any_register(i, 0, operand(0), s);
        symbols.any_register(i, 1, operand(1), s);
        u32 to = bytes_of(c.to), from = bytes_of(c.from);
        if (i.width[0] < to || i.width[1] < from) s.fail("register narrower than its type");
        c.exact = i.width[0] == to && i.width[1] == from;
        i.run = convert_handler(c);
    }

    // Generic addresses of global memory are the same numbers.
    void convert_address() {
        s.expect_operands(2);
        if (s.name != "cvta.to.global.u64") s.fail("unknown form");
        destination(0, operand(0), 8);
        source(1, operand(1), 8);
        i.run = move_handler(8);
    }

    void collective(Handler run) {
        i.flow = Flow::collective;
        i.run = run;
    }

    void member_mask(const std::string& name) {
        i.has_member_mask = true;
        source(kMemberMask, name, 4);
    }

    void shuffle_lanes() {
        static const std::map<std::string, u8> modes = {{"up", 0}, {"down", 1}, {"bfly", 2}, {"idx", 3}};
        s.expect_operands(5);
        if (part(1) != "sync" || part(3) != "b32" || !modes.count(part(2))) s.fail("unknown form");
        i.mode = modes.at(part(2));
        auto destinations = split(operand(0), '|');
        destination(0, trim(destinations[0]), 4);
        if (destinations.size() == 2) {
            predicate(1, trim(destinations[1]));
            i.width[1] = 1;
        }
        for (u32 k = 1; k < 4; ++k) source(k + 1, operand(k), 4);
        member_mask(operand(4));
        collective(shuffle);
    }

    void vote_lanes() {
        static const std::map<std::string, u8> modes = {{"any", 0}, {"all", 1}, {"uni", 2}};
        s.expect_operands(3);
        if (part(1) != "sync" || part(3) != "pred" || !modes.count(part(2))) s.fail("unknown form");
        i.mode = modes.at(part(2));
        predicate(0, operand(0));
        i.negated_source = operand(1)[0] == '!';
        predicate(1, operand(1).substr(i.negated_source));
        member_mask(operand(2));
        collective(vote);
    }

    void barrier() {
        s.expect_operands(1);
        if (s.name == "bar.warp.sync") {
            member_mask(operand(0));
            return collective(warp_barrier);
        }
        if (s.name != "bar.sync" || operand(0) != "0") s.fail("unknown form");
        i.flow = Flow::cta_barrier;
        i.run = nothing;
    }

    // Of all threads of a cluster: warps arrive and wait with all of their lanes.
    void cluster_barrier() {
        s.expect_operands(0);
        bool arrive = s.name == "barrier.cluster.arrive.release.aligned";
        if (!arrive && s.name != "barrier.cluster.wait.acquire.aligned") s.fail("unknown form");
        i.flow = arrive ? Flow::cluster_arrive : Flow::cluster_wait;
        i.run = nothing;
    }

    void map_address() {
        s.expect_operands(3);
        if (s.name != "mapa.shared::cluster.u32") s.fail("unknown form");
        destination(0, operand(0), 4);
        source(1, operand(1), 4);
        source(2, operand(2), 4);
        i.run = map_to_rank;
    }

    void load_matrices() {
        s.expect_operands(2);
        bool known = s.has("sync") && s.has("aligned") && s.has("m8n8") && s.has("shared") && s.has("b16");
        size_t n = 6 + s.has("trans") + (s.has("x4") || s.has("x2") || s.has("x1"));
        if (!known || s.parts.size() != n) s.fail("unknown form");
        i.count = s.has("x4") ? 4 : s.has("x2") ? 2 : 1;
        i.transposed = s.has("trans");
        i.space = Space::shared;
        auto elements = elements_of(operand(0));
        if (elements.size() != i.count) s.fail("elements of a vector");
        for (u32 k = 0; k < elements.size(); ++k) destination(k, elements[k], 4);
        symbols.address(i, operand(1), s);
        collective(load_matrix);
    }

    void transpose_matrix() {
        s.expect_operands(2);
        if (s.name != "movmatrix.sync.aligned.m8n8.trans.b16") s.fail("unknown form");
        destination(0, operand(0), 4);
        source(1, operand(1), 4);
        collective(move_matrix);
    }

    void multiply_matrices() {
        s.expect_operands(4);
        i.bf16 = s.name == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
        if (!i.bf16 && s.name != "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") s.fail("unknown form");
        // Registers of D, A, B and C.
        const u32 sizes[4] = {4, 4, 2, 4};
        u32 at = 0;
        for (u32 k = 0; k < 4; ++k) {
            auto fragment = elements_of(operand(k));
            if (fragment.size() != sizes[k]) s.fail("registers of a fragment");
            for (const std::string& name : fragment) {
                if (k == 0) {
                    destination(at++, name, 4);
                } else {
                    source(at++, name, 4);
                }
            }
        }
        collective(multiply);
    }

    void copy_async() {
        if (s.name == "cp.async.commit_group") {
            i.run = copies_commit;
            return;
        }
        if (s.name == "cp.async.wait_group") {
            s.expect_operands(1);
            i.offset = static_cast<i64>(immediate(operand(0)));
            i.run = copies_wait;
            return;
        }
        s.expect_operands(4);
        i.count = 1;
        i.bytes = static_cast<u8>(immediate(operand(2)));
        bool whole = i.bytes == 16 && s.name == "cp.async.cg.shared.global";
        bool part = (i.bytes == 4 || i.bytes == 8 || i.bytes == 16) && s.name == "cp.async.ca.shared.global";
        if (!whole && !part) s.fail("unknown form");
        // Addresses without offsets.
        auto inner = [](const std::string& address) { return trim(address.substr(1, address.size() - 2)); };
        source(0, inner(operand(0)), 4);
        source(1, inner(operand(1)), 8);
        source(2, operand(3), 4);
        i.run = copies_issue;
    }

    void atomic() {
        s.expect_operands(3);
        bool ordering = part(1) == "acq_rel" || part(1) == "relaxed", scope = part(2) == "gpu" || part(2) == "sys";
        if (!ordering || !scope || part(4) != (part(3) == "exch" ? "b32" : "u32")) s.fail("unknown form");
        i.ordering = part(1) == "relaxed" ? Ordering::relaxed : Ordering::acq_rel;
        i.space = Space::global;
        i.bytes = 4;
        i.count = 1;
        i.run = atomic_handler(part(3));
        destination(0, operand(0), 4);
        symbols.address(i, operand(1), s);
        source(1, operand(2), 4);
    }

    void fence_or_grid() {
        s.expect_operands(0);
        if (s.name == "fence.sc.sys") i.run = fence;
        if (s.name == "griddepcontrol.wait") i.run = grid_wait;
        if (s.name == "griddepcontrol.launch_dependents") i.run = grid_launch;
    }

    void parse() {
        static const std::map<std::string, void (Parser::*)()> forms = {
            {"bra", &Parser::branch},
            {"ret", &Parser::exit},
            {"exit", &Parser::exit},
            {"mov", &Parser::move},
            {"ld", &Parser::memory},
            {"st", &Parser::memory},
            {"cvt", &Parser::convert},
            {"cvta", &Parser::convert_address},
            {"shfl", &Parser::shuffle_lanes},
            {"vote", &Parser::vote_lanes},
            {"bar", &Parser::barrier},
            {"barrier", &Parser::cluster_barrier},
            {"mapa", &Parser::map_address},
            {"ldmatrix", &Parser::load_matrices},
            {"movmatrix", &Parser::transpose_matrix},
            {"mma", &Parser::multiply_matrices},
            {"cp", &Parser::copy_async},
            {"atom", &Parser::atomic},
            {"fence", &Parser::fence_or_grid},
            {"griddepcontrol", &Parser::fence_or_grid},
        };
        auto entry = table().find(s.name);
        auto form = forms.find(s.parts[0]);
        if (s.name == "mov.pred" && s.operands.size() == 2 && is_immediate(s.operands[1])) {
            constant_predicate();
        } else if (entry != table().end()) {
            from_table(entry->second);
        } else if (form != forms.end()) {
            (this->*form->second)();
        } else {
            s.fail("unknown instruction");
        }
        if (!i.run && i.flow == Flow::plain) s.fail("unknown form");
    }
};

}  // namespace

ParsedInstruction parse_instruction(const std::string& text, Symbols& symbols) {
    ParsedInstruction parsed;
    Instruction& i = parsed.instruction;
    i.text = text.substr(0, 110);
    std::replace(i.text.begin(), i.text.end(), '\t', ' ');
    std::string bare = text;
    if (text[0] == '@') {
        size_t space = text.find_first_of(" \t");
        i.negated = text[1] == '!';
        std::string name = text.substr(1 + i.negated, space - 1 - i.negated);
        bare = trim(text.substr(space));
        symbols.predicate(i, 0, name, Statement(text));
        i.guard = static_cast<i32>(i.operands[0]);
    }
    Statement statement(bare);
    Parser{statement, symbols, i, parsed.label}.parse();
    return parsed;
}

}  // namespace ptx
