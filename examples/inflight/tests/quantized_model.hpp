// The bundled model with weights of other types.
#pragma once

#include <ggml.h>

#include <string>

namespace test {

/**
 * Writes the bundled model, its matrices converted to `type`, or to q8_0 where a row is no whole number of blocks. The
 * file is removed when the object is destroyed.
 */
class QuantizedModel {
public:
    explicit QuantizedModel(ggml_type type);
    ~QuantizedModel();
    QuantizedModel(const QuantizedModel &) = delete;
    QuantizedModel &operator=(const QuantizedModel &) = delete;

    const std::string &path() const { return path_; }

private:
    std::string path_;
};

}  // namespace test
