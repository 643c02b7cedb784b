// Values from files and from the environment as parts of a message.
#ifndef SINKCACHE_PROGRAMS_ONE_LINE_HPP
#define SINKCACHE_PROGRAMS_ONE_LINE_HPP

#include <cstddef>
#include <string>

namespace programs {

/** Most bytes of a value from a file that an error text shows. */
constexpr std::size_t SHOWN_BYTES = 100;

/**
 * At most `most` bytes of a text as a part of one line. Control characters, which could act on a terminal, become \xNN;
 * UTF-8 is not cut inside a character.
 */
std::string one_line(const std::string &text, std::size_t most = SHOWN_BYTES);

/** The same in quotes. */
std::string in_quotes(const std::string &text);

}  // namespace programs

#endif
