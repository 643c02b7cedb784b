// Reads the shared test vectors: safetensors files of f32 tensors with their configuration and events in the header.
#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace vectors {

struct Event {
    /** "chunk", "evict", "rewind", "reset", "refuse evict" or "refuse rewind". */
    std::string kind;
    int n;
};

/** One file. */
struct Vector {
    std::string name;
    nlohmann::json config;
    std::vector<Event> events;
    std::map<std::string, std::vector<float>> tensors;

    /** A number of the configuration, or `fallback` where it is null. */
    std::uint32_t number(const char *key, std::uint32_t fallback = 0) const {
        return config.at(key).is_null() ? fallback : config.at(key).get<std::uint32_t>();
    }
    /** NULL if there is no such tensor. */
    const std::vector<float> *find(const char *tensor) const {
        const auto found = tensors.find(tensor);
        return found == tensors.end() ? nullptr : &found->second;
    }
};

/** @throws std::runtime_error */
inline Vector load(const std::filesystem::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::uint64_t header_bytes = 0;
    file.read(reinterpret_cast<char *>(&header_bytes), sizeof header_bytes);
    std::string header(header_bytes, '\0');
    file.read(header.data(), static_cast<std::streamsize>(header_bytes));
    if (!file) {
        throw std::runtime_error("cannot read " + path.string());
    }
    const auto json = nlohmann::json::parse(header);
    Vector v;
    v.name = path.stem().string();
    v.config = nlohmann::json::parse(json.at("__metadata__").at("config").get<std::string>());
    for (const auto &e : nlohmann::json::parse(json.at("__metadata__").at("events").get<std::string>())) {
        const std::string kind = e.at(0);
        if (kind == "refuse") {
            v.events.push_back({"refuse " + e.at(1).at(0).get<std::string>(), e.at(1).at(1)});
        } else {
            v.events.push_back({kind, e.at(1)});
        }
    }
    for (const auto &[name, tensor] : json.items()) {
        if (name == "__metadata__") {
            continue;
        }
        const std::uint64_t from = tensor.at("data_offsets").at(0), to = tensor.at("data_offsets").at(1);
        auto &values = v.tensors[name];
        values.resize((to - from) / sizeof(float));
        file.seekg(static_cast<std::streamoff>(8 + header_bytes + from));
        file.read(reinterpret_cast<char *>(values.data()), static_cast<std::streamsize>(to - from));
        if (!file || tensor.at("dtype") != "F32") {
            throw std::runtime_error(v.name + ": cannot read " + name);
        }
    }
    return v;
}

/** All vectors of a folder, sorted by name. */
inline std::vector<Vector> all(const std::filesystem::path &folder) {
    std::vector<std::filesystem::path> paths;
    for (const auto &entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() == ".safetensors") {
            paths.push_back(entry.path());
        }
    }
    std::sort(paths.begin(), paths.end());
    std::vector<Vector> loaded;
    for (const auto &path : paths) {
        loaded.push_back(load(path));
    }
    return loaded;
}

}  // namespace vectors
