// Code that may not be trusted with the process.
#ifndef LLAMA_STREAM_CHILD_HPP
#define LLAMA_STREAM_CHILD_HPP

#include <functional>
#include <string>

/**
 * What `work` returns in a copy of this process, which may take 20 seconds of the processor and 1 GiB more memory: a
 * crash, an endless loop or recursion ends the copy alone. What it throws is thrown here, as UserError with its text.
 *
 * @throws UserError also if the copy ends otherwise; `what` is the text's beginning
 */
std::string in_child(const std::string &what, const std::function<std::string()> &work);

#endif
