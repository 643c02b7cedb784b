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
    /** "chunk", "evict", "rewind", "reset", "pin" or "evict_range". */
    std::string kind;
    /** The edit must be an error, and change nothing. */
    bool refused;
    /** Index of the first token of "pin" and "evict_range". */
    std::uint64_t first;
    int n;
};

inline Event event(const nlohmann::json &json, bool refused = false) {
    const std::string kind = json.at(0);
    if (kind == "refuse") {
        return event(json.at(1), true);
    }
    if (kind == "pin" || kind == "evict_range") {
        return {kind, refused, json.at(1), json.at(2)};
    }
    return {kind, refused, 0, json.at(1)};
}

/** One file. */
struct Vector {
    std::string name;
    nlohmann::json config;
    std::vector<Event> events;
    std::map<std::string, std::vector<float>> tensors;

    /** A number of the configuration, or `fallback` where it is null or missing. */
    std::uint32_t number(const char *key, std::uint32_t fallback = 0) const {
        const auto found = config.find(key);
        return found == config.end() || found->is_null() ? fallback : found->get<std::uint32_t>();
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
        v.events.push_back(event(e));
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

/** All vectors of a folder and of its folder `segments`, sorted by name. */
inline std::vector<Vector> all(const std::filesystem::path &folder) {
    std::vector<std::filesystem::path> paths;
    for (const auto &in : {folder, folder / "segments"}) {
        for (const auto &entry : std::filesystem::directory_iterator(in)) {
            if (entry.path().extension() == ".safetensors") {
                paths.push_back(entry.path());
            }
        }
    }
    std::sort(paths.begin(), paths.end(), [](const auto &a, const auto &b) { return a.stem() < b.stem(); });
    std::vector<Vector> loaded;
    for (const auto &path : paths) {
        loaded.push_back(load(path));
    }
    return loaded;
}

}  // namespace vectors
