"""Whether another library is installed: in this Python, or in the folder SKC_PEERS, which `go` fills from packed
wheels."""

import importlib.util
import os
import sys

# Last: what this Python has itself comes first.
if (_folder := os.environ.get("SKC_PEERS")) and _folder not in sys.path:
    sys.path.append(_folder)


def is_installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def is_measured(case, platform, name):
    """A library's own cases, if it is there. Where it is not, core cases still get a row that says so."""
    return platform.name == "cuda" and (case.core or is_installed(name))
