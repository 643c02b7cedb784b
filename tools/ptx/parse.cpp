// A module, from its text: directives and bodies of kernels.

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "instruction.hpp"
#include "instruction_table.hpp"

namespace ptx {
namespace {

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

// What is left of a line without its comments. `inside`: whether a comment has begun before, or goes on.
std::string without_comments(const std::string& line, bool& inside) {
    std::string rest;
    for (size_t k = 0; k < line.size(); ++k) {
        if (inside) {
            if (line.compare(k, 2, "*/") != 0) continue;
            inside = false;
            ++k;
        } else if (line.compare(k, 2, "/*") == 0) {
            inside = true;
            ++k;
        } else if (line.compare(k, 2, "//") == 0) {
            break;
        } else {
            rest += line[k];
        }
    }
    return trim(rest);
}

// Where the code being read comes from.
struct Place {
    u32 line = 0;  // of the PTX
    u16 file = 0;  // .loc
    u32 file_line = 0;
};

class KernelParser {
public:
    KernelParser(const std::string& name, const std::string& label)
        : kernel_(std::make_unique<Kernel>()), symbols_(*kernel_) {
        kernel_->name = name;
        kernel_->label = label;
    }

    // A line before the body: ".param .align 8 .b8 name[824]", ".maxntid 128".
    void head(const std::string& line) {
        if (line.find(".param") != std::string::npos) {
            if (kernel_->param_bytes) throw std::runtime_error("more than one parameter: " + line);
            size_t open = line.find('['), start = line.find_last_of(" \t", open);
            symbols_.declare_parameter(line.substr(start + 1, open - start - 1));
            kernel_->param_bytes = static_cast<u32>(std::atoi(line.c_str() + open + 1));
        } else if (starts_with(line, ".maxntid")) {
            kernel_->max_threads = static_cast<u32>(std::atoi(line.c_str() + 8));
        }
    }

    // A line of the body. Statements may go over several.
    void body(const std::string& line, const Place& place) {
        if (pending_.empty() && line.back() == ':') {
            labels_[line.substr(0, line.size() - 1)] = static_cast<u32>(kernel_->code.size());
            return;
        }
        pending_ += (pending_.empty() ? "" : " ") + line;
        if (pending_.back() != ';' && pending_.back() != '}') return;
        for (const std::string& part : split(pending_, ';')) statement(trim(part), place);
        pending_.clear();
    }

    // Whether a closing brace would end the body.
    bool at_end() const { return pending_.empty() && !symbols_.in_scope(); }

    std::unique_ptr<Kernel> end() {
        for (const Instruction& i : kernel_->code) {
            if (i.bytes == 0 || i.space == Space::param) continue;
            kernel_->cell_bytes = std::min(kernel_->cell_bytes, u32{i.bytes} * i.count);
        }
        // A last instruction that nobody runs past.
        Instruction last;
        last.flow = Flow::exit;
        last.text = "(end)";
        last.run = nothing;
        kernel_->code.push_back(last);
        for (const auto& [at, label] : branches_) {
            auto target = labels_.find(label);
            if (target == labels_.end()) throw std::runtime_error("no label " + label);
            kernel_->code[at].target = target->second;
            kernel_->code[target->second].leader = true;
        }
        return std::move(kernel_);
    }

private:
    std::unique_ptr<Kernel> kernel_;
    Symbols symbols_;
    std::map<std::string, u32> labels_;
    std::vector<std::pair<size_t, std::string>> branches_;
    std::string pending_;

    void statement(const std::string& text, const Place& place) {
        if (text.empty() || starts_with(text, ".pragma")) return;
        // Registers may be declared for a few statements in braces.
        if (text[0] == '{' || text[0] == '}') {
            if (text[0] == '{') {
                symbols_.open_scope();
            } else {
                symbols_.close_scope();
            }
            return statement(trim(text.substr(1)), place);
        }
        if (starts_with(text, ".reg")) return symbols_.declare(text);
        if (text[0] == '.') throw std::runtime_error("unknown directive: " + text);
        ParsedInstruction parsed = parse_instruction(text, symbols_);
        parsed.instruction.line = place.line;
        parsed.instruction.file = place.file;
        parsed.instruction.file_line = place.file_line;
        if (!parsed.label.empty()) branches_.emplace_back(kernel_->code.size(), parsed.label);
        kernel_->code.push_back(std::move(parsed.instruction));
    }
};

class ModuleParser {
public:
    std::unique_ptr<Module> parse(const std::string& text) {
        // The first line names the variant, if it is a comment.
        if (starts_with(text, "// ")) label_ = text.substr(3, text.find('\n') - 3);
        std::istringstream in(text);
        std::string raw;
        bool comment = false;
        while (std::getline(in, raw)) {
            ++place_.line;
            std::string line = without_comments(raw, comment);
            try {
                if (!line.empty() && !parse_line(line)) break;
            } catch (const std::exception& e) {
                throw std::runtime_error("PTX line " + std::to_string(place_.line) + ": " + e.what());
            }
        }
        return std::move(module_);
    }

private:
    std::unique_ptr<Module> module_ = std::make_unique<Module>();
    std::unique_ptr<KernelParser> kernel_;
    bool in_body_ = false;
    std::string label_;
    Place place_;

    // Whether the text goes on: behind the code there is debug information.
    bool parse_line(const std::string& line) {
        if (starts_with(line, ".file")) {
            add_file(line.substr(5));
        } else if (starts_with(line, ".loc")) {
            std::istringstream in(line.substr(4));
            in >> place_.file >> place_.file_line;
        } else if (in_body_) {
            if (kernel_->at_end() && line[0] == '}') {
                std::unique_ptr<Kernel> kernel = kernel_->end();
                module_->kernels[kernel->name] = std::move(kernel);
                kernel_ = nullptr;
                in_body_ = false;
            } else {
                kernel_->body(line, place_);
            }
        } else if (size_t at = line.find(".entry "); at != std::string::npos) {
            at += 7;
            kernel_ = std::make_unique<KernelParser>(trim(line.substr(at, line.find('(') - at)), label_);
        } else if (starts_with(line, ".section")) {
            return false;
        } else if (kernel_ && line[0] == '{') {
            in_body_ = true;
        } else if (kernel_) {
            kernel_->head(line);
        }
        return true;
    }

    // 1 "/folder/decode.cuh", ...
    void add_file(const std::string& rest) {
        std::istringstream in(rest);
        u32 number = 0;
        std::string name;
        in >> number >> name;
        std::replace(name.begin(), name.end(), '"', ' ');
        std::replace(name.begin(), name.end(), ',', ' ');
        name = trim(name);
        module_->files[number] = name.substr(name.rfind('/') + 1);
    }
};

}  // namespace

std::unique_ptr<Module> parse(const std::string& text) { return ModuleParser().parse(text); }

}  // namespace ptx
