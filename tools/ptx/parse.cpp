// PTX text -> instructions. Knows what NVRTC makes of the kernels; anything else is an error, not a guess.
#include <algorithm>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "instruction_table.hpp"
#include "warp.hpp"

namespace ptx {
namespace {

std::string trim(const std::string& s) {
    size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
    return a == std::string::npos ? "" : s.substr(a, b - a + 1);
}

std::vector<std::string> split(const std::string& s, char by) {
    std::vector<std::string> out;
    std::string now;
    for (char c : s) {
        if (c == by) {
            out.push_back(now);
            now.clear();
        } else {
            now += c;
        }
    }
    out.push_back(now);
    return out;
}

// At commas outside braces and brackets.
std::vector<std::string> operands_of(const std::string& s) {
    std::vector<std::string> out;
    std::string now;
    int depth = 0;
    for (char c : s) {
        if (c == '{' || c == '[') ++depth;
        if (c == '}' || c == ']') --depth;
        if (c == ',' && depth == 0) {
            out.push_back(trim(now));
            now.clear();
        } else {
            now += c;
        }
    }
    if (!trim(now).empty()) out.push_back(trim(now));
    return out;
}

u32 bytes_of(const std::string& type) {
    if (type.size() < 2) throw std::runtime_error("type " + type);
    if (type == "bf16") return 2;
    int bits = std::atoi(type.c_str() + 1);
    if (bits != 8 && bits != 16 && bits != 32 && bits != 64) throw std::runtime_error("type " + type);
    return static_cast<u32>(bits / 8);
}

struct Parser {
    Kernel* kernel = nullptr;
    std::map<std::string, std::pair<u32, u32>> registers;  // name -> place, bytes (0: predicate)
    std::map<std::pair<u32, u64>, u32> constants;
    std::map<std::string, u32> labels;
    std::vector<std::pair<size_t, std::string>> branches;
    std::map<std::string, std::string> params;
    u32 line = 0;
    u16 file = 0;
    u32 file_line = 0;

    [[noreturn]] void fail(const std::string& what, const std::string& statement) {
        throw std::runtime_error("PTX line " + std::to_string(line) + ": " + what + ": " + statement);
    }

    void declare(const std::string& statement) {  // .reg .b32 %r<10>
        std::istringstream in(statement);
        std::string reg, type, name;
        in >> reg >> type;
        std::getline(in, name);
        for (std::string n : split(name, ',')) {
            n = trim(n);
            size_t open = n.find('<');
            u32 count = 1;
            std::string base = n;
            if (open != std::string::npos) {
                count = static_cast<u32>(std::atoi(n.c_str() + open + 1));
                base = n.substr(0, open);
            }
            for (u32 k = 0; k < count; ++k) {
                std::string full = open == std::string::npos ? base : base + std::to_string(k);
                if (type == ".pred") {
                    registers[full] = {kernel->n_predicates++, 0};
                } else {
                    u32 bytes = bytes_of(type.substr(1));
                    registers[full] = {kernel->register_bytes, bytes};
                    kernel->register_bytes += (32 * bytes + 63) / 64 * 64;
                }
            }
        }
    }

    u32 constant(u32 bytes, u64 value) {
        if (bytes < 8) value &= (u64{1} << 8 * bytes) - 1;
        auto key = std::make_pair(bytes, value);
        auto it = constants.find(key);
        if (it != constants.end()) return it->second;
        u32 at = kernel->register_bytes;
        kernel->register_bytes += (32 * bytes + 63) / 64 * 64;
        kernel->constants.push_back({at, static_cast<u8>(bytes), value});
        return constants[key] = at;
    }

    static bool is_immediate(const std::string& s) {
        return !s.empty() && (isdigit(s[0]) || (s[0] == '-' && s.size() > 1 && isdigit(s[1])));
    }

    u64 immediate(const std::string& s) {
        if (s.size() == 10 && (s.compare(0, 2, "0f") == 0 || s.compare(0, 2, "0F") == 0))
            return std::stoul(s.substr(2), nullptr, 16);
        if (s.size() == 18 && (s.compare(0, 2, "0d") == 0 || s.compare(0, 2, "0D") == 0))
            return std::stoull(s.substr(2), nullptr, 16);
        std::string digits = s;
        if (!digits.empty() && digits.back() == 'U') digits.pop_back();
        if (digits[0] == '-') return static_cast<u64>(std::stoll(digits, nullptr, 0));
        return std::stoull(digits, nullptr, 0);
    }

    // A source or destination of `bytes` bytes exactly; 0 = a predicate; 99 = any register.
    void operand(Instruction& i, u32 at, const std::string& s, u32 bytes, bool destination,
                 const std::string& statement) {
        auto it = registers.find(s);
        if (it != registers.end()) {
            if (bytes != 99 && it->second.second != bytes) fail("operand " + s + " has another width", statement);
            i.operands[at] = it->second.first;
            i.width[at] = static_cast<u8>(it->second.second);
            return;
        }
        if (destination) fail("destination " + s, statement);
        if (s == "skc_shared") {
            if (bytes != 8 && bytes != 4) fail("address width", statement);
            i.operands[at] = constant(bytes, kSharedBase);
            i.width[at] = static_cast<u8>(bytes);
            return;
        }
        if (params.count(s)) {
            i.operands[at] = constant(bytes, 0);
            i.width[at] = static_cast<u8>(bytes);
            return;
        }
        if (!is_immediate(s)) fail("operand " + s, statement);
        if (bytes == 99) fail("immediate " + s + " of unknown width", statement);
        if (bytes == 0) {
            // A predicate of its own that never changes.
            i.operands[at] = immediate(s) ? one_predicate() : zero_predicate();
            return;
        }
        i.operands[at] = constant(bytes, immediate(s));
        i.width[at] = static_cast<u8>(bytes);
    }

    // Predicates are set to all ones or zeros at random when a block begins: constants are made by comparing.
    u32 zero_predicate() { fail("constant predicate outside mov.pred", ""); }
    u32 one_predicate() { return zero_predicate(); }

    // [reg], [reg+1], [symbol+1]
    void address(Instruction& i, const std::string& s, const std::string& statement) {
        if (s.size() < 3 || s.front() != '[' || s.back() != ']') fail("address " + s, statement);
        std::string inner = trim(s.substr(1, s.size() - 2));
        size_t plus = inner.find('+');
        std::string base = trim(plus == std::string::npos ? inner : inner.substr(0, plus));
        i.offset = plus == std::string::npos ? 0 : static_cast<i64>(immediate(trim(inner.substr(plus + 1))));
        auto it = registers.find(base);
        if (it != registers.end()) {
            if (it->second.second != 8 && it->second.second != 4) fail("address register", statement);
            i.wide_address = it->second.second == 8;
            i.operands[17] = it->second.first;
        } else if (base == "skc_shared") {
            if (i.space != Space::shared) fail("shared symbol in another space", statement);
            i.operands[17] = constant(8, kSharedBase);
        } else if (params.count(base)) {
            if (i.space != Space::param) fail("parameter in another space", statement);
            i.operands[17] = constant(8, 0);
        } else {
            fail("address " + s, statement);
        }
    }

    std::vector<std::string> vector_of(const std::string& s) {
        if (s.front() != '{') return {s};
        std::vector<std::string> out;
        for (auto& e : split(s.substr(1, s.size() - 2), ',')) out.push_back(trim(e));
        return out;
    }

    void instruction(std::string statement) {
        Instruction i;
        i.line = line;
        i.file = file;
        i.file_line = file_line;
        i.text = statement.substr(0, 110);
        std::replace(i.text.begin(), i.text.end(), '\t', ' ');
        std::string s = statement;
        if (s[0] == '@') {
            size_t space = s.find_first_of(" \t");
            std::string g = s.substr(1, space - 1);
            if (g[0] == '!') {
                i.negated = true;
                g = g.substr(1);
            }
            auto it = registers.find(g);
            if (it == registers.end() || it->second.second != 0) fail("guard", statement);
            i.guard = static_cast<i32>(it->second.first);
            s = trim(s.substr(space));
        }
        size_t space = s.find_first_of(" \t");
        std::string name = s.substr(0, space), rest = space == std::string::npos ? "" : trim(s.substr(space));
        std::vector<std::string> ops = operands_of(rest);
        std::vector<std::string> parts = split(name, '.');
        auto want = [&](size_t n) {
            if (ops.size() != n) fail("number of operands", statement);
        };
        const std::string& op = parts[0];
        auto has = [&](const char* what) { return std::find(parts.begin(), parts.end(), what) != parts.end(); };

        auto known = table().find(name);
        if (known != table().end() && !(name == "mov.pred")) {
            const char* spec = known->second.operands;
            want(std::strlen(spec));
            for (u32 k = 0; spec[k]; ++k) {
                u32 bytes = spec[k] == 'p' ? 0 : spec[k] == 'h' ? 2 : spec[k] == 'w' ? 4 : 8;
                operand(i, k, ops[k], bytes, k == 0, statement);
            }
            i.run = known->second.run;
        } else if (name == "mov.pred") {
            want(2);
            if (is_immediate(ops[1])) {
                // 0 = 0, or 0 = 1
                operand(i, 0, ops[0], 0, true, statement);
                i.run = table().at("setp.eq.u32").run;
                i.operands[1] = constant(4, 0);
                i.operands[2] = constant(4, immediate(ops[1]) ? 0 : 1);
            } else {
                operand(i, 0, ops[0], 0, true, statement);
                operand(i, 1, ops[1], 0, false, statement);
                i.run = table().at("mov.pred").run;
            }
        } else if (op == "bra") {
            want(1);
            i.flow = Flow::branch;
            branches.emplace_back(kernel->code.size(), ops[0]);
        } else if (op == "ret" || op == "exit") {
            i.flow = Flow::exit;
        } else if (op == "mov") {
            want(2);
            u32 bytes = bytes_of(parts.at(1));
            if (ops[0][0] == '{' || ops[1][0] == '{') {
                if (bytes != 8) fail("vector mov", statement);
                auto v = vector_of(ops[0][0] == '{' ? ops[0] : ops[1]);
                if (v.size() != 2) fail("vector mov", statement);
                if (ops[0][0] == '{') {
                    operand(i, 0, v[0], 4, true, statement);
                    operand(i, 1, v[1], 4, true, statement);
                    operand(i, 2, ops[1], 8, false, statement);
                    i.run = split64;
                } else {
                    operand(i, 0, ops[0], 8, true, statement);
                    operand(i, 1, v[0], 4, false, statement);
                    operand(i, 2, v[1], 4, false, statement);
                    i.run = join64;
                }
            } else {
                static const std::map<std::string, u8> specials = {
                    {"%tid.x", 0},   {"%tid.y", 1},    {"%tid.z", 2},    {"%ctaid.x", 3},  {"%ctaid.y", 4},
                    {"%ctaid.z", 5}, {"%nctaid.x", 6}, {"%nctaid.y", 7}, {"%nctaid.z", 8}, {"%ntid.x", 9},
                    {"%ntid.y", 10}, {"%ntid.z", 11},  {"%laneid", 12}};
                operand(i, 0, ops[0], bytes, true, statement);
                auto it = specials.find(ops[1]);
                if (it != specials.end()) {
                    if (bytes != 4) fail("special register", statement);
                    i.mode = it->second;
                    i.run = special;
                } else {
                    operand(i, 1, ops[1], bytes, false, statement);
                    i.run = move_handler(bytes);
                }
            }
        } else if (op == "ld" || op == "st") {
            want(2);
            bool store = op == "st";
            i.count = 1;
            std::string type = parts.back();
            for (size_t k = 1; k + 1 < parts.size(); ++k) {
                const std::string& q = parts[k];
                if (q == "global")
                    i.space = Space::global;
                else if (q == "shared")
                    i.space = Space::shared;
                else if (q == "param")
                    i.space = Space::param;
                else if (q == "v2")
                    i.count = 2;
                else if (q == "v4")
                    i.count = 4;
                else if (q == "release" && store)
                    i.mode = 1;
                else if (q == "relaxed")
                    i.mode = 2;
                else if (q == "sys" && i.mode != 0) {
                } else
                    fail("qualifier " + q, statement);
            }
            i.bytes = static_cast<u8>(bytes_of(type));
            i.sign = type[0] == 's';
            auto v = vector_of(store ? ops[1] : ops[0]);
            if (v.size() != i.count) fail("vector", statement);
            for (u32 k = 0; k < v.size(); ++k) {
                if (store && is_immediate(v[k])) {
                    operand(i, k, v[k], std::max<u32>(i.bytes, 2), false, statement);
                } else {
                    operand(i, k, v[k], 99, !store, statement);
                    // 8-bit elements live in 16-bit registers; any register may be wider than the element, none
                    // narrower.
                    if (i.width[k] < i.bytes || i.width[k] == 0) fail("register narrower than the element", statement);
                }
            }
            address(i, store ? ops[0] : ops[1], statement);
            i.run = store ? store_handler() : load_handler(i);
        } else if (op == "cvt") {
            want(2);
            std::string rounding;
            bool sat = false, ftz = false;
            for (size_t k = 1; k + 2 < parts.size(); ++k) {
                if (parts[k] == "sat")
                    sat = true;
                else if (parts[k] == "ftz")
                    ftz = true;
                else
                    rounding = parts[k];
            }
            std::string to = parts[parts.size() - 2], from = parts.back();
            operand(i, 0, ops[0], 99, true, statement);
            if (is_immediate(ops[1])) fail("cvt of an immediate", statement);
            operand(i, 1, ops[1], 99, false, statement);
            i.run = convert_handler(to, from, rounding, sat, ftz,
                                    i.width[0] == bytes_of(to) && i.width[1] == bytes_of(from));
            if (i.width[0] < bytes_of(to) || i.width[1] < bytes_of(from))
                fail("register narrower than its type", statement);
        } else if (op == "cvta") {
            want(2);
            if (name != "cvta.to.global.u64") fail("address conversion", statement);
            operand(i, 0, ops[0], 8, true, statement);
            operand(i, 1, ops[1], 8, false, statement);
            i.run = move_handler(8);  // generic addresses of global memory are the same numbers
        } else if (op == "shfl") {
            want(5);
            if (parts.at(1) != "sync" || parts.at(3) != "b32") fail("shfl", statement);
            static const std::map<std::string, u8> modes = {{"up", 0}, {"down", 1}, {"bfly", 2}, {"idx", 3}};
            i.mode = modes.at(parts.at(2)) | 0x80;
            auto d = split(ops[0], '|');
            operand(i, 0, trim(d[0]), 4, true, statement);
            if (d.size() == 2) {
                operand(i, 1, trim(d[1]), 0, true, statement);
                i.width[1] = 1;
            }
            for (u32 k = 1; k < 4; ++k) operand(i, k + 1, ops[k], 4, false, statement);
            operand(i, 17, ops[4], 4, false, statement);
            i.flow = Flow::collective;
            i.run = shuffle;
        } else if (op == "vote") {
            want(3);
            if (parts.at(1) != "sync" || parts.at(3) != "pred") fail("vote", statement);
            static const std::map<std::string, u8> modes = {{"any", 0}, {"all", 1}, {"uni", 2}};
            i.mode = modes.at(parts.at(2)) | 0x80;
            operand(i, 0, ops[0], 0, true, statement);
            std::string a = ops[1];
            if (a[0] == '!') {
                i.mode |= 0x40;
                a = a.substr(1);
            }
            operand(i, 1, a, 0, false, statement);
            operand(i, 17, ops[2], 4, false, statement);
            i.flow = Flow::collective;
            i.run = vote;
        } else if (name == "bar.warp.sync") {
            want(1);
            i.mode = 0x80;
            operand(i, 17, ops[0], 4, false, statement);
            i.flow = Flow::collective;
            i.run = warp_barrier;
        } else if (name == "bar.sync") {
            if (ops.size() != 1 || ops[0] != "0") fail("barrier", statement);
            i.flow = Flow::cta_barrier;
            i.run = nothing;
        } else if (op == "ldmatrix") {
            want(2);
            if (!has("sync") || !has("aligned") || !has("m8n8") || !has("shared") || !has("b16"))
                fail("ldmatrix", statement);
            i.count = has("x4") ? 4 : has("x2") ? 2 : 1;
            i.mode = has("trans") ? 1 : 0;
            i.space = Space::shared;
            auto v = vector_of(ops[0]);
            if (v.size() != i.count) fail("vector", statement);
            for (u32 k = 0; k < v.size(); ++k) operand(i, k, v[k], 4, true, statement);
            address(i, ops[1], statement);
            i.flow = Flow::collective;
            i.run = load_matrix;
        } else if (name == "movmatrix.sync.aligned.m8n8.trans.b16") {
            want(2);
            operand(i, 0, ops[0], 4, true, statement);
            operand(i, 1, ops[1], 4, false, statement);
            i.flow = Flow::collective;
            i.run = move_matrix;
        } else if (op == "mma") {
            want(4);
            bool bf = name == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
            if (!bf && name != "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") fail("mma", statement);
            i.mode = bf;
            const u32 sizes[4] = {4, 4, 2, 4};
            u32 at = 0;
            for (u32 k = 0; k < 4; ++k) {
                auto v = vector_of(ops[k]);
                if (v.size() != sizes[k]) fail("fragment", statement);
                for (auto& e : v) operand(i, at++, e, 4, k == 0, statement);
            }
            i.flow = Flow::collective;
            i.run = multiply;
        } else if (name == "cp.async.cg.shared.global" || name == "cp.async.ca.shared.global") {
            want(4);
            i.bytes = static_cast<u8>(immediate(ops[2]));
            i.count = 1;
            bool whole = i.bytes == 16, part = (i.bytes == 4 || i.bytes == 8) && parts.at(2) == "ca";
            if (!whole && !part) fail("cp.async", statement);
            auto bare = [&](const std::string& a) {
                std::string inner = trim(a.substr(1, a.size() - 2));
                if (inner.find('+') != std::string::npos) fail("cp.async address", statement);
                return inner;
            };
            operand(i, 0, bare(ops[0]), 4, false, statement);
            operand(i, 1, bare(ops[1]), 8, false, statement);
            operand(i, 2, ops[3], 4, false, statement);
            i.run = copies_issue;
        } else if (name == "cp.async.commit_group") {
            i.run = copies_commit;
        } else if (name == "cp.async.wait_group") {
            want(1);
            i.offset = static_cast<i64>(immediate(ops[0]));
            i.run = copies_wait;
        } else if (op == "atom") {
            want(3);
            if ((parts.at(1) != "acq_rel" && parts.at(1) != "relaxed") ||
                (parts.at(2) != "gpu" && parts.at(2) != "sys") ||
                parts.at(4) != (parts.at(3) == "exch" ? "b32" : "u32"))
                fail("atom", statement);
            i.mode = parts.at(1) == "relaxed" ? 0 : 3;
            i.run = atomic_handler(parts.at(3));
            operand(i, 0, ops[0], 4, true, statement);
            address(i, ops[1], statement);
            operand(i, 1, ops[2], 4, false, statement);
        } else if (name == "fence.sc.sys") {
            i.run = fence;
        } else if (name == "griddepcontrol.wait") {
            i.run = grid_wait;
        } else if (name == "griddepcontrol.launch_dependents") {
            i.run = grid_launch;
        } else {
            fail("unknown instruction", statement);
        }
        if (!i.run && i.flow == Flow::plain) fail("unknown form", statement);
        kernel->code.push_back(i);
    }

    void end_kernel() {
        for (auto& [at, label] : branches) {
            auto it = labels.find(label);
            if (it == labels.end()) fail("label", label);
            kernel->code[at].target = it->second;
        }
        for (const Instruction& i : kernel->code) {
            if (i.bytes && i.space != Space::param)
                kernel->cell_bytes = std::min(kernel->cell_bytes, u32{i.bytes} * i.count);
        }
        // A last instruction that nobody runs past.
        Instruction end;
        end.flow = Flow::exit;
        end.text = "(end)";
        end.run = nothing;
        kernel->code.push_back(end);
        for (auto& [at, label] : branches) kernel->code[kernel->code[at].target].leader = true;
    }
};

}  // namespace

std::unique_ptr<Module> parse(const std::string& text) {
    auto module = std::make_unique<Module>();
    Parser p;
    // The first line names the variant, if it is a comment.
    std::string label = text.compare(0, 3, "// ") == 0 ? text.substr(3, text.find('\n') - 3) : "";
    std::istringstream in(text);
    std::string raw, pending;
    bool in_body = false, in_params = false, comment = false;
    std::unique_ptr<Kernel> kernel;
    while (std::getline(in, raw)) {
        ++p.line;
        std::string line;
        for (size_t k = 0; k < raw.size(); ++k) {
            if (comment) {
                if (raw.compare(k, 2, "*/") == 0) comment = false, ++k;
            } else if (raw.compare(k, 2, "/*") == 0) {
                comment = true, ++k;
            } else if (raw.compare(k, 2, "//") == 0) {
                break;
            } else {
                line += raw[k];
            }
        }
        line = trim(line);
        if (line.empty()) continue;
        if (line.compare(0, 5, ".file") == 0) {
            std::istringstream l(line.substr(5));
            u32 n;
            std::string name;
            l >> n >> name;
            name.erase(std::remove(name.begin(), name.end(), '"'), name.end());
            if (!name.empty() && name.back() == ',') name.pop_back();
            module->files[n] = name.substr(name.rfind('/') + 1);
            continue;
        }
        if (line.compare(0, 4, ".loc") == 0) {
            std::istringstream l(line.substr(4));
            u32 f, n;
            l >> f >> n;
            p.file = static_cast<u16>(f);
            p.file_line = n;
            continue;
        }
        if (!in_body) {
            if (line.compare(0, 7, ".target") == 0) {
                module->target = trim(line.substr(7));
            } else if (line.compare(0, 14, ".visible .entry") == 0 || line.find(".entry ") != std::string::npos) {
                size_t at = line.find(".entry ") + 7;
                std::string name = trim(line.substr(at, line.find('(') - at));
                kernel = std::make_unique<Kernel>();
                kernel->name = name;
                kernel->label = label;
                p.registers.clear();
                p.constants.clear();
                p.labels.clear();
                p.branches.clear();
                p.params.clear();
                p.kernel = kernel.get();
                in_params = line.find(')') == std::string::npos;
            } else if (in_params && line.find(".param") != std::string::npos) {
                // .param .align 8 .b8 name[824]
                size_t open = line.find('[');
                size_t start = line.find_last_of(" \t", open);
                std::string name = line.substr(start + 1, open - start - 1);
                if (!p.params.empty()) throw std::runtime_error("more than one parameter");
                p.params[name] = name;
                kernel->param_bytes = static_cast<u32>(std::atoi(line.c_str() + open + 1));
            } else if (line.compare(0, 8, ".maxntid") == 0) {
                kernel->max_threads = static_cast<u32>(std::atoi(line.c_str() + 8));
            } else if (line[0] == '{' && kernel) {
                in_body = true;
            } else if (line[0] == ')') {
                in_params = false;
            } else if (line.compare(0, 9, ".section ") == 0) {
                break;  // debug information
            }
            continue;
        }
        if (pending.empty() && line[0] == '}') {
            p.end_kernel();
            module->kernels[kernel->name] = std::move(kernel);
            in_body = false;
            continue;
        }
        if (pending.empty() && line.back() == ':') {
            p.labels[line.substr(0, line.size() - 1)] = static_cast<u32>(p.kernel->code.size());
            continue;
        }
        pending += (pending.empty() ? "" : " ") + line;
        if (pending.back() != ';') continue;
        for (auto& statement : split(pending, ';')) {
            std::string s = trim(statement);
            if (s.empty() || s.compare(0, 7, ".pragma") == 0) continue;
            if (s.compare(0, 4, ".reg") == 0) {
                p.declare(s);
            } else if (s[0] == '.') {
                throw std::runtime_error("PTX: " + s);
            } else {
                p.instruction(s);
            }
        }
        pending.clear();
    }
    return module;
}

}  // namespace ptx
