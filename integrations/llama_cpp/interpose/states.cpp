#include "states.hpp"

#include "log.hpp"
#include "one_line.hpp"
#include "state_format.hpp"

#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace sinkcache {
namespace interpose {
namespace {

/** What stands in front of the tokens. */
struct FileHeader {
    std::uint32_t magic, version, n_tokens;
};

/** Runs `call`; an error becomes a line in the log, and 0. */
template <class Call>
std::size_t attempt(const std::string &what, Call call) {
    try {
        return call();
    } catch (const std::exception &e) {
        log(LogLevel::ERRORS, what + ": " + e.what());
        return 0;
    }
}

std::string name_of(const char *path) { return "file " + programs::in_quotes(path ? path : "(null)"); }

[[noreturn]] void fail(const std::string &text) { throw std::runtime_error(text); }

void write_file(const char *path, const FileHeader &header, const llama_token *tokens,
                const std::vector<std::uint8_t> &state) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    if (!file) {
        fail(std::strerror(errno));
    }
    file.write(reinterpret_cast<const char *>(&header), sizeof header);
    file.write(reinterpret_cast<const char *>(tokens), static_cast<std::streamsize>(header.n_tokens * sizeof *tokens));
    file.write(reinterpret_cast<const char *>(state.data()), static_cast<std::streamsize>(state.size()));
    file.close();
    if (!file) {
        // What is there stays, as with llama.cpp: a load refuses it.
        fail(std::string("it could not be written: ") + std::strerror(errno));
    }
}

std::vector<std::uint8_t> read_whole(const char *path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) {
        fail(std::strerror(errno));
    }
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(file.tellg()));
    file.seekg(0);
    if (!file.read(reinterpret_cast<char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
        fail("it could not be read");
    }
    return bytes;
}

/** Bytes of header and tokens, which have been checked to be there. */
std::size_t check_file(const std::vector<std::uint8_t> &bytes, std::uint32_t magic, std::uint32_t version,
                       FileHeader &header) {
    if (bytes.size() < sizeof header) {
        fail("it has " + std::to_string(bytes.size()) + " bytes: the header alone has " +
             std::to_string(sizeof header));
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.magic != magic || header.version != version) {
        fail("it is no file of this kind, or of another version");
    }
    if (header.n_tokens > (bytes.size() - sizeof header) / sizeof(llama_token)) {
        fail("it names " + std::to_string(header.n_tokens) + " tokens and is shorter than these");
    }
    return sizeof header + header.n_tokens * sizeof(llama_token);
}

void check_room(const FileHeader &header, const FileTokens &room) {
    if (header.n_tokens > room.n) {
        fail("it has " + std::to_string(header.n_tokens) + " tokens: there is room for " + std::to_string(room.n));
    }
}

void copy_tokens(const std::vector<std::uint8_t> &bytes, const FileHeader &header, const FileTokens &room,
                 std::size_t *n_tokens) {
    if (header.n_tokens > 0) {
        std::memcpy(room.data, bytes.data() + sizeof header, header.n_tokens * sizeof(llama_token));
    }
    *n_tokens = header.n_tokens;
}

/** Whether a file ends with its state: nothing is loaded of one that does not. */
void check_end(const std::vector<std::uint8_t> &bytes, std::size_t state_at) {
    const std::size_t left = bytes.size() - state_at;
    const std::uint64_t n_bytes = read_header(bytes.data() + state_at, left).n_bytes;
    if (n_bytes != left) {
        fail("it has " + std::to_string(left - n_bytes) + " bytes behind its state");
    }
}

/** Whether the states of a context are whole and fill it: a damaged header must not leave the first ones loaded. */
void check_states(const StateHeader &header, const std::uint8_t *from) {
    std::uint64_t at = STATE_HEADER_BYTES;
    for (std::uint32_t s = 0; s < header.n_seqs; ++s) {
        const StateHeader one = read_header(from + at, static_cast<std::size_t>(header.n_bytes - at));
        if (one.kind == StateKind::CONTEXT) {
            fail("the state of sequence " + std::to_string(s) + " is that of a context");
        }
        at += one.n_bytes;
    }
    if (at != header.n_bytes) {
        fail("its sequences have " + std::to_string(at) + " of its " + std::to_string(header.n_bytes) + " bytes");
    }
}

/** Loads the states of the first sequences, whose lengths have been checked. False at the first error. */
bool load_states(Served &served, const std::uint8_t *from, std::uint32_t n_seqs) {
    const std::uint8_t *at = from + STATE_HEADER_BYTES;
    for (std::uint32_t s = 0; s < n_seqs; ++s) {
        const auto bytes = static_cast<std::size_t>(read_header(at, SIZE_MAX).n_bytes);
        if (served.load_state(static_cast<llama_seq_id>(s), at, bytes) == 0) {
            return false;
        }
        at += bytes;
    }
    return true;
}

FileHeader header_of(std::uint32_t magic, std::uint32_t version, std::size_t n_tokens) {
    if (n_tokens > UINT32_MAX) {
        fail(std::to_string(n_tokens) + " tokens: at most " + std::to_string(UINT32_MAX) + " are allowed");
    }
    return {magic, version, static_cast<std::uint32_t>(n_tokens)};
}

}  // namespace

std::size_t all_state_bytes(Served &served) {
    std::size_t bytes = STATE_HEADER_BYTES;
    for (std::uint32_t s = 0; s < served.n_seqs(); ++s) {
        const std::size_t one = served.state_bytes(static_cast<llama_seq_id>(s));
        if (one == 0) {
            return 0;
        }
        bytes += one;
    }
    return bytes;
}

std::size_t save_all_states(Served &served, std::uint8_t *to, std::size_t n_bytes) {
    if (n_bytes < STATE_HEADER_BYTES) {
        log(LogLevel::ERRORS, "saving the state of a context: there is room for " + std::to_string(n_bytes) + " bytes");
        return 0;
    }
    std::size_t at = STATE_HEADER_BYTES;
    for (std::uint32_t s = 0; s < served.n_seqs(); ++s) {
        const std::size_t one = served.save_state(static_cast<llama_seq_id>(s), to + at, n_bytes - at);
        if (one == 0) {
            return 0;
        }
        at += one;
    }
    StateHeader header;
    header.kind = StateKind::CONTEXT;
    header.n_seqs = served.n_seqs();
    header.n_bytes = at;
    write_header(header, to);
    return at;
}

std::size_t load_all_states(Served &served, const std::uint8_t *from, std::size_t n_bytes) {
    return attempt("loading the state of a context", [&]() -> std::size_t {
        const StateHeader header = read_header(from, n_bytes);
        if (header.kind != StateKind::CONTEXT) {
            fail("it is the state of one sequence");
        }
        if (header.n_seqs > served.n_seqs()) {
            fail("it has " + std::to_string(header.n_seqs) + " sequences: the context has " +
                 std::to_string(served.n_seqs()));
        }
        check_states(header, from);
        // A snapshot is checked when it is loaded: those before a damaged one are then taken back.
        std::vector<std::uint8_t> before(all_state_bytes(served));
        if (before.empty() || save_all_states(served, before.data(), before.size()) != before.size()) {
            fail("what the context has cannot be kept meanwhile");
        }
        if (!load_states(served, from, header.n_seqs)) {
            load_states(served, before.data(), served.n_seqs());
            return 0;
        }
        // As with llama.cpp: what a state does not have is empty after it.
        for (std::uint32_t s = header.n_seqs; s < served.n_seqs(); ++s) {
            served.seq_rm(static_cast<llama_seq_id>(s), -1, -1);
        }
        return static_cast<std::size_t>(header.n_bytes);
    });
}

bool save_file(Served &served, const char *path, const llama_token *tokens, std::size_t n_tokens) {
    return attempt("saving " + name_of(path), [&]() -> std::size_t {
               const FileHeader header = header_of(LLAMA_SESSION_MAGIC, LLAMA_SESSION_VERSION, n_tokens);
               std::vector<std::uint8_t> state(all_state_bytes(served));
               if (state.empty() || save_all_states(served, state.data(), state.size()) != state.size()) {
                   return 0;
               }
               write_file(path, header, tokens, state);
               return 1;
           }) != 0;
}

bool load_file(Served &served, const char *path, const FileTokens &room, std::size_t *n_tokens) {
    return attempt("loading " + name_of(path), [&]() -> std::size_t {
               const std::vector<std::uint8_t> bytes = read_whole(path);
               FileHeader header{};
               const std::size_t at = check_file(bytes, LLAMA_SESSION_MAGIC, LLAMA_SESSION_VERSION, header);
               check_room(header, room);
               check_end(bytes, at);
               if (load_all_states(served, bytes.data() + at, bytes.size() - at) != bytes.size() - at) {
                   return 0;
               }
               copy_tokens(bytes, header, room, n_tokens);
               return 1;
           }) != 0;
}

std::size_t seq_save_file(Served &served, const char *path, llama_seq_id seq_id, const llama_token *tokens,
                          std::size_t n_tokens) {
    return attempt("saving " + name_of(path), [&]() -> std::size_t {
        const FileHeader header = header_of(LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION, n_tokens);
        std::vector<std::uint8_t> state(served.state_bytes(seq_id));
        if (state.empty() || served.save_state(seq_id, state.data(), state.size()) != state.size()) {
            return 0;
        }
        write_file(path, header, tokens, state);
        return sizeof header + n_tokens * sizeof *tokens + state.size();
    });
}

std::size_t seq_load_file(Served &served, const char *path, llama_seq_id seq_id, const FileTokens &room,
                          std::size_t *n_tokens) {
    return attempt("loading " + name_of(path), [&]() -> std::size_t {
        const std::vector<std::uint8_t> bytes = read_whole(path);
        FileHeader header{};
        const std::size_t at = check_file(bytes, LLAMA_STATE_SEQ_MAGIC, LLAMA_STATE_SEQ_VERSION, header);
        if (!room.data) {
            *n_tokens = header.n_tokens;
            return at;
        }
        check_room(header, room);
        check_end(bytes, at);
        if (served.load_state(seq_id, bytes.data() + at, bytes.size() - at) != bytes.size() - at) {
            return 0;
        }
        copy_tokens(bytes, header, room, n_tokens);
        return bytes.size();
    });
}

}  // namespace interpose
}  // namespace sinkcache
