#include "saved_chat.hpp"

#include "command_line.hpp"
#include "engine.hpp"
#include "folder.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <unistd.h>

namespace {

using programs::ByteReader;
using programs::Bytes;
using programs::ByteWriter;
using programs::Digest;
using programs::Folder;

/** The first bytes of a file; another layout gets another number. */
const char MAGIC[8] = {'S', 'K', 'C', 'C', 'H', 'A', 'T', '1'};

/** Where a file is that is replaced: of a link, what it leads to. */
struct Place {
    std::string folder, name;

    explicit Place(const std::string &path) {
        std::error_code failed;
        const auto whole = std::filesystem::weakly_canonical(path, failed);
        const auto &place = failed ? std::filesystem::path(path) : whole;
        folder = place.parent_path().string();
        folder = folder.empty() ? "." : folder;
        name = place.filename().string();
    }
};

Bytes content_of(const SavedChat &chat) {
    ByteWriter out;
    out.u64(chat.rounds).u64(chat.processed).list(chat.pending).u32(chat.raw ? 1 : 0);
    out.u32(chat.text.first ? 1 : 0).text(chat.text.system).text(chat.text.prompt).text(chat.text.answer);
    out.u64(chat.sequence.size()).raw(chat.sequence.data(), chat.sequence.size());
    return out.take();
}

Bytes content_of_file(const std::string &path) try {
    std::error_code error;
    // A device or a pipe may never end.
    if (!std::filesystem::is_regular_file(path, error)) {
        throw UserError("--load '" + path + "' cannot be read: it is no file");
    }
    std::ifstream file;
    file.exceptions(std::ios::failbit | std::ios::badbit);
    file.open(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
} catch (const std::ios::failure &) {
    throw UserError("--load '" + path + "' cannot be read");
}

}  // namespace

Digest tag_of_model(const std::string &path) {
    const Digest model = programs::hash_file(path);
    return programs::Hash().add("llama-stream").add(model.data(), model.size()).digest();
}

void check_writable(const std::string &path) {
    std::error_code ignored;
    const auto status = std::filesystem::status(path, ignored);
    // A file takes the place of what is there, which may be a device.
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
        throw UserError("--save '" + path + "' is not a file");
    }
    const Place place(path);
    Folder::open(place.folder);
    if (access(place.folder.c_str(), W_OK) != 0) {
        throw UserError("--save '" + path + "': no file can be written into '" + place.folder + "'");
    }
}

void save_chat(const std::string &path, const Digest &tag, const SavedChat &chat) {
    const Bytes content = content_of(chat);
    programs::Hash hash;
    hash.add(MAGIC, sizeof MAGIC).add(tag.data(), tag.size()).add(content.data(), content.size());
    const Digest check = hash.digest();
    check_writable(path);
    const Place place(path);
    const int error = Folder::open(place.folder)
                          .write(place.name, {{MAGIC, sizeof MAGIC},
                                              {tag.data(), tag.size()},
                                              {content.data(), content.size()},
                                              {check.data(), check.size()}});
    if (error != 0) {
        throw UserError("--save '" + path + "' could not be written: " + std::strerror(error));
    }
}

SavedChat load_chat(const std::string &path, const Digest &tag) {
    const Bytes bytes = content_of_file(path);
    ByteReader in(bytes);
    const std::uint8_t *magic = in.raw(sizeof MAGIC);
    if (!magic || std::memcmp(magic, MAGIC, sizeof MAGIC) != 0) {
        throw UserError("--load '" + path + "' is not a chat that this version of llama-stream has saved");
    }
    const std::string damaged = "--load '" + path + "' is damaged";
    const std::uint8_t *saved_tag = in.raw(tag.size());
    if (!saved_tag || in.left() < sizeof(Digest)) {
        throw UserError(damaged);
    }
    const std::size_t end = bytes.size() - sizeof(Digest);
    const Digest check = programs::Hash().add(bytes.data(), end).digest();
    if (std::memcmp(bytes.data() + end, check.data(), check.size()) != 0) {
        throw UserError(damaged);
    }
    if (std::memcmp(saved_tag, tag.data(), tag.size()) != 0) {
        throw UserError("--load '" + path + "' was saved with another model");
    }
    SavedChat chat;
    chat.rounds = in.u64();
    chat.processed = in.u64();
    chat.pending = in.list();
    chat.raw = in.u32() != 0;
    chat.text.first = in.u32() != 0;
    chat.text.system = in.text();
    chat.text.prompt = in.text();
    chat.text.answer = in.text();
    const std::uint64_t n = in.u64();
    const std::uint8_t *sequence = n == in.left() - sizeof(Digest) ? in.raw(n) : nullptr;
    if (!in.complete() || !sequence) {
        throw UserError(damaged);
    }
    chat.sequence.assign(sequence, sequence + n);
    return chat;
}
