#include "model_tag.hpp"

#include "hash.hpp"
#include "host.hpp"
#include "log.hpp"
#include "one_line.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <regex>

namespace sinkcache {
namespace interpose {
namespace {

constexpr off_t MIB = 1 << 20, WHOLE = 16 * MIB, PAGE = 4096;

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

bool add_file(programs::Hash &hash, int file) {
    struct stat status {};
    if (fstat(file, &status) != 0) {
        return false;
    }
    hash.add(std::to_string(status.st_size) + ":");
    std::vector<char> buffer(static_cast<std::size_t>(MIB));
    for (off_t at = 0; at < status.st_size; at += MIB) {
        const auto n = static_cast<std::size_t>(std::min(at < WHOLE ? MIB : PAGE, status.st_size - at));
        if (pread(file, buffer.data(), n, at) != static_cast<ssize_t>(n)) {
            return false;
        }
        hash.add(buffer.data(), n);
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

ModelTag::ModelTag(const llama_model *model, const std::vector<std::string> &files) : model_(model) {
    for (const std::string &file : files) {
        files_.push_back(open(file.c_str(), O_RDONLY | O_CLOEXEC));
    }
}

ModelTag::~ModelTag() {
    for (const int file : files_) {
        if (file >= 0) {
            close(file);
        }
    }
}

const HostTag &ModelTag::get() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!tag_) {
        programs::Hash metadata;
        add_metadata(metadata, model_);
        programs::Hash all = metadata;
        bool complete = !files_.empty();
        for (const int file : files_) {
            complete = complete && file >= 0 && add_file(all, file);
        }
        if (!complete) {
            log(LogLevel::INFO, "the model's file cannot be read: metadata alone tell saved states of models apart");
        }
        tag_ = complete ? all.digest() : metadata.digest();
    }
    return *tag_;
}

}  // namespace interpose
}  // namespace sinkcache
