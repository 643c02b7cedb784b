"""The few calls of the CUDA driver that PyTorch does not offer."""

import ctypes


class Driver:
    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name, *arguments):
        code = getattr(self.lib, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} returned {code}")

    def capture(self, stream, call):
        """A graph of the work that `call` enqueues into the stream. None of it runs."""
        graph, relaxed = ctypes.c_void_p(), 2
        self("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), relaxed)
        try:
            call()
        finally:
            self("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        return graph

    def count_nodes(self, stream, call):
        """Nodes of the graph that `call` is captured into."""
        graph, n = self.capture(stream, call), ctypes.c_size_t()
        self("cuGraphGetNodes", graph, None, ctypes.byref(n))
        self("cuGraphDestroy", graph)
        return n.value
