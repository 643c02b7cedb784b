// No llama.cpp: what is tested beside this file needs none.
#include "host.hpp"

#include <stdexcept>

namespace sinkcache {
namespace interpose {

const Host &host() { throw std::logic_error("there is no host in this test"); }

}  // namespace interpose
}  // namespace sinkcache
