#include "model_tag.hpp"

#include "hash.hpp"
#include "host.hpp"
#include "log.hpp"
#include "one_line.hpp"

#include <fstream>
#include <regex>

namespace sinkcache {
namespace interpose {
namespace {

constexpr std::streamoff MIB = 1 << 20, WHOLE = 16 * MIB, PAGE = 4096;

void add_metadata(programs::Hash &hash, const llama_model *model) {
    const auto add_text = [&](auto call, std::int32_t i) {
        // What a value exceeds the buffer by is not worth another call: the files are hashed, too.
        std::vector<char> text(std::size_t{1} << 12, '\0');
        const std::int32_t n = call(model, i, text.data(), text.size());
        hash.add(std::to_string(n) + ":").add(std::string(text.data()));
    };
    const std::int32_t count = real().llama_model_meta_count(model);
    for (std::int32_t i = 0; i < count; ++i) {
        add_text(real().llama_model_meta_key_by_index, i);
        add_text(real().llama_model_meta_val_str_by_index, i);
    }
    hash.add(std::to_string(real().llama_model_size(model)));
}

bool add_file(programs::Hash &hash, const std::string &path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) {
        return false;
    }
    const std::streamoff size = file.tellg();
    hash.add(std::to_string(size) + ":");
    std::vector<char> buffer(static_cast<std::size_t>(MIB));
    for (std::streamoff at = 0; at < size; at += MIB) {
        const std::streamoff n = std::min(at < WHOLE ? MIB : PAGE, size - at);
        file.seekg(at);
        if (!file.read(buffer.data(), n)) {
            return false;
        }
        hash.add(buffer.data(), static_cast<std::size_t>(n));
    }
    return true;
}

}  // namespace

std::vector<std::string> model_files(const std::string &path) {
    static const std::regex pattern("(.*-)(\\d{5})(-of-)(\\d{5})(\\.gguf)");
    std::smatch parts;
    if (!std::regex_match(path, parts, pattern)) {
        return {path};
    }
    std::vector<std::string> files;
    for (int i = 1, n = std::stoi(parts[4]); i <= n; ++i) {
        std::string number = std::to_string(i);
        number.insert(0, 5 - number.size(), '0');
        files.push_back(parts[1].str() + number + parts[3].str() + parts[4].str() + parts[5].str());
    }
    return files;
}

HostTag model_tag(const llama_model *model, const std::vector<std::string> &files) {
    programs::Hash hash;
    add_metadata(hash, model);
    if (files.empty()) {
        log(LogLevel::INFO, "the model's file is not known: its metadata alone tell saved states of models apart");
    }
    for (const std::string &file : files) {
        if (!add_file(hash, file)) {
            // Metadata alone would make the states of this process useless for the next, which may read the file.
            throw Error(SKC_STATUS_INTERNAL, "the model's file " + programs::in_quotes(file) +
                                                 " can no longer be read: states of it can be neither saved nor loaded");
        }
    }
    return hash.digest();
}

}  // namespace interpose
}  // namespace sinkcache
