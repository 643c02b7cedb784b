// What tells saved sequences of different models apart.
#ifndef SINKCACHE_INTERPOSE_MODEL_TAG_HPP
#define SINKCACHE_INTERPOSE_MODEL_TAG_HPP

#include "sinkcache.hpp"

#include <llama.h>

#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace sinkcache {
namespace interpose {

/** The files of a model that a host has named by one path: `-00001-of-00003.gguf` stands for three. */
std::vector<std::string> model_files(const std::string &path);

/**
 * A hash of a model: of its metadata, and of its files where they are known: their sizes, their first 16 MiB and a page
 * of every MiB. Reading a model of many GiB whole would take too long, and one that differs at all differs in every
 * tensor that was trained.
 *
 * Files stay open, so that the hash is the same and can be computed when they have been deleted or replaced since.
 */
class ModelTag {
public:
    ModelTag(const llama_model *model, const std::vector<std::string> &files);
    ~ModelTag();
    ModelTag(const ModelTag &) = delete;
    ModelTag &operator=(const ModelTag &) = delete;

    /** Computed at the first call, while the model lives; never fails. Any thread. */
    const HostTag &get();

private:
    const llama_model *model_;
    std::vector<int> files_;
    std::mutex mutex_;
    std::optional<HostTag> tag_;
};

}  // namespace interpose
}  // namespace sinkcache

#endif  // SINKCACHE_INTERPOSE_MODEL_TAG_HPP
