"""Where the programs of llama.cpp, the library under test, the model and the text lie; run.py sets the first two."""
import os
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[4]
# A folder with llama-server, llama-cli and llama-completion as scripts/llama_hosts builds them.
PROGRAMS = pathlib.Path(os.environ.get("SKC_HOST_PROGRAMS", ""))
# libsinkcache_llama.so
LIBRARY = pathlib.Path(os.environ.get("SKC_HOST_LIBRARY", ""))
# Writes models with random weights; it is built with the library.
MAKE_MODEL = LIBRARY.parents[1] / "tests/llama-make-model"
# True where everything is to be run, False for a share of it.
EVERYTHING = os.environ.get("SKC_HOST_EVERYTHING", "") == "yes"

LAUNCHER = REPOSITORY / "integrations/llama_cpp/launcher/sinkcache-llama"
MODEL = REPOSITORY / "examples/data/tiny-llama-bytes.gguf"
# Prose: what stands before it is a table of contents.
TEXT = (REPOSITORY / "examples/data/stream.txt").read_text()[5472:]
