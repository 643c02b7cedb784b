// The stand-in NVRTC: a "cubin" is what compiler.hpp makes of the sources.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "compiler.hpp"
#include "image.hpp"

// Numbers: nvrtc.h of CUDA 13.0.
enum nvrtcResult : int {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_OUT_OF_MEMORY = 1,
    NVRTC_ERROR_PROGRAM_CREATION_FAILURE = 2,
    NVRTC_ERROR_INVALID_INPUT = 3,
    NVRTC_ERROR_INVALID_PROGRAM = 4,
    NVRTC_ERROR_INVALID_OPTION = 5,
    NVRTC_ERROR_COMPILATION = 6,
};

#define NVRTC_API extern "C" __attribute__((visibility("default")))

namespace {

using namespace skc_shim;

// What NVRTC 13.0 compiles for.
constexpr int kArchs[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

struct Program {
    Sources sources;
    std::string log;
    std::string cubin;
};

std::mutex mutex;
std::set<Program*>& programs() {
    static std::set<Program*>& live = *new std::set<Program*>;
    return live;
}

Program* find(void* handle) {
    std::lock_guard lock(mutex);
    auto it = programs().find(static_cast<Program*>(handle));
    return it == programs().end() ? nullptr : *it;
}

bool starts_with(const std::string& text, const char* prefix) { return text.rfind(prefix, 0) == 0; }

bool parse_arch(const std::string& text, Target& target) {
    bool real = starts_with(text, "sm_"), is_virtual = starts_with(text, "compute_");
    if (!real && !is_virtual) return false;
    const char* number = text.c_str() + (real ? 3 : 8);
    char* end = nullptr;
    long arch = std::strtol(number, &end, 10);
    bool suffix = (std::strcmp(end, "a") == 0 || std::strcmp(end, "f") == 0) && arch >= 90;
    if ((*end && !suffix) || std::find(std::begin(kArchs), std::end(kArchs), arch) == std::end(kArchs)) return false;
    target.arch = static_cast<int>(arch);
    target.arch_name = number;
    target.cubin = real;
    return true;
}

// Options without effect here.
bool ignored(const std::string& option) {
    static const char* const kExact[] = {"-use_fast_math", "--use_fast_math", "-lineinfo", "--generate-line-info", "-G",
                                         "--device-debug", "-w", "--disable-warnings", "-default-device",
                                         "--device-as-default-execution-space", "-restrict", "--restrict",
                                         "-extra-device-vectorization", "--extra-device-vectorization"};
    static const char* const kPrefix[] = {"--fmad=", "-fmad=", "--maxrregcount=", "-maxrregcount=", "--ptxas-options=",
                                          "-ftz=", "--ftz=", "-prec-div=", "--prec-div=", "-prec-sqrt=", "--prec-sqrt=",
                                          "--diag-suppress=", "-diag-suppress="};
    return std::any_of(std::begin(kExact), std::end(kExact), [&](const char* o) { return option == o; }) ||
           std::any_of(std::begin(kPrefix), std::end(kPrefix), [&](const char* o) { return starts_with(option, o); });
}

bool parse(int n, const char* const* options, Target& target, std::string& log) {
    for (int i = 0; i < n; ++i) {
        std::string option = options[i];
        std::string value = option.substr(std::min(option.size(), option.find('=') + 1));
        if (starts_with(option, "--gpu-architecture=") || starts_with(option, "-arch=")) {
            if (parse_arch(value, target)) continue;
            log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
            return false;
        }
        bool standard = starts_with(option, "--std=") || starts_with(option, "-std=");
        if (standard && (value == "c++11" || value == "c++14" || value == "c++17" || value == "c++20")) {
            target.flags.push_back("-std=" + value);
        } else if (starts_with(option, "--define-macro=")) {
            target.flags.push_back("-D" + value);
        } else if (starts_with(option, "-D") && option.size() > 2) {
            target.flags.push_back(option);
        } else if (!ignored(option)) {
            log = "nvrtc: error: unrecognized option " + option + " found\n";
            return false;
        }
    }
    return true;
}

nvrtcResult copy_out(const std::string& text, char* out) {
    if (!out) return NVRTC_ERROR_INVALID_INPUT;
    std::memcpy(out, text.data(), text.size());
    return NVRTC_SUCCESS;
}

}  // namespace

bool skc_shim::Sources::names_are_safe() const {
    auto safe = [](const File& file) {
        return !file.name.empty() && file.name[0] != '.' && file.name[0] != '-' &&
               file.name.find('/') == std::string::npos;
    };
    for (const File& header : headers) {
        if (!safe(header)) return false;
    }
    return safe(program);
}

NVRTC_API nvrtcResult nvrtcVersion(int* major, int* minor) {
    if (!major || !minor) return NVRTC_ERROR_INVALID_INPUT;
    *major = 13;
    *minor = 0;
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcGetNumSupportedArchs(int* n) {
    if (!n) return NVRTC_ERROR_INVALID_INPUT;
    *n = static_cast<int>(std::size(kArchs));
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcGetSupportedArchs(int* archs) {
    if (!archs) return NVRTC_ERROR_INVALID_INPUT;
    std::copy(std::begin(kArchs), std::end(kArchs), archs);
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcCreateProgram(void** out, const char* source, const char* name, int n,
                                         const char* const* texts, const char* const* names) {
    if (!out || !source || n < 0 || (n > 0 && (!texts || !names))) return NVRTC_ERROR_INVALID_INPUT;
    auto program = std::make_unique<Program>();
    program->sources.program = {name ? name : "default_program", source};
    for (int i = 0; i < n; ++i) program->sources.headers.push_back({names[i], texts[i]});
    if (!program->sources.names_are_safe()) return NVRTC_ERROR_PROGRAM_CREATION_FAILURE;
    std::lock_guard lock(mutex);
    *out = *programs().insert(program.release()).first;
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcDestroyProgram(void** handle) {
    if (!handle) return NVRTC_ERROR_INVALID_PROGRAM;
    Program* program = find(*handle);
    if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
    std::lock_guard lock(mutex);
    programs().erase(program);
    delete program;
    *handle = nullptr;
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcCompileProgram(void* handle, int n, const char* const* options) {
    Program* program = find(handle);
    if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
    if (n < 0 || (n > 0 && !options)) return NVRTC_ERROR_INVALID_INPUT;
    Target target;
    program->log.clear();
    program->cubin.clear();
    if (!parse(n, options, target, program->log)) return NVRTC_ERROR_INVALID_OPTION;
    Compiled compiled = compile(program->sources, target);
    program->log = compiled.log;
    if (!compiled.ok) return NVRTC_ERROR_COMPILATION;
    // For a virtual architecture NVRTC makes PTX and no cubin: success, with an empty cubin.
    if (target.cubin) program->cubin = make_image(std::move(compiled.object), static_cast<uint32_t>(target.arch));
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcGetCUBINSize(void* handle, size_t* size) {
    Program* program = find(handle);
    if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
    if (!size) return NVRTC_ERROR_INVALID_INPUT;
    *size = program->cubin.size();
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcGetCUBIN(void* handle, char* out) {
    Program* program = find(handle);
    return program ? copy_out(program->cubin, out) : NVRTC_ERROR_INVALID_PROGRAM;
}

// Includes the terminating NUL.
NVRTC_API nvrtcResult nvrtcGetProgramLogSize(void* handle, size_t* size) {
    Program* program = find(handle);
    if (!program) return NVRTC_ERROR_INVALID_PROGRAM;
    if (!size) return NVRTC_ERROR_INVALID_INPUT;
    *size = program->log.size() + 1;
    return NVRTC_SUCCESS;
}

NVRTC_API nvrtcResult nvrtcGetProgramLog(void* handle, char* out) {
    Program* program = find(handle);
    return program ? copy_out(program->log + '\0', out) : NVRTC_ERROR_INVALID_PROGRAM;
}

NVRTC_API const char* nvrtcGetErrorString(nvrtcResult result) {
    switch (result) {
        case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
        case NVRTC_ERROR_OUT_OF_MEMORY: return "NVRTC_ERROR_OUT_OF_MEMORY";
        case NVRTC_ERROR_PROGRAM_CREATION_FAILURE: return "NVRTC_ERROR_PROGRAM_CREATION_FAILURE";
        case NVRTC_ERROR_INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case NVRTC_ERROR_INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
        case NVRTC_ERROR_INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
    }
    return "NVRTC_ERROR unknown";
}
