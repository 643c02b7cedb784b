"""Where a measurement runs: a GPU, this CPU, or the stand-in for a GPU of tools/cuda_shim.

A place owns a stream, captures calls into graphs, takes times, and says what the device is. On the CPU there are no
graphs: a "graph" is the call itself. On the stand-in tensors are ordinary memory, which is its device memory too; times
mean nothing there.
"""

import ctypes
import statistics
import subprocess
import time

import torch


class Timing:
    """Seconds of a call: median and quartiles of `n` samples of `repeat` calls each."""

    def __init__(self, samples, repeat):
        self.samples, self.repeat = sorted(samples), repeat

    @property
    def median(self):
        return statistics.median(self.samples)

    def quartile(self, part):
        return self.samples[min(len(self.samples) - 1, int(part * len(self.samples)))]


class Cpu:
    name, backend, tensors, graphs = "cpu", "SKC_BACKEND_CPU", "cpu", False
    # Seconds that a sample takes at least.
    least = 2e-3

    def __init__(self):
        torch.set_num_threads(1)

    def stream(self):
        return None

    def synchronize(self):
        pass

    def capture(self, call):
        return call

    def count_launches(self, call):
        return None

    def time(self, call, seconds, between=lambda: None):
        """Samples of `call` for so many seconds; `between` comes before each and is not timed."""
        return self._sample(seconds, between, lambda repeat: self._clock(call, repeat), self.synchronize, self.least)

    def _clock(self, call, repeat):
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(repeat):
            call()
        self.synchronize()
        return (time.perf_counter() - begin) / repeat

    @staticmethod
    def _sample(seconds, between, clock, settle, least):
        clock(1)
        once = max(clock(1), 1e-7)
        repeat = max(1, min(1000, round(least / once)))
        samples, until = [], time.perf_counter() + seconds
        while len(samples) < 3 or (time.perf_counter() < until and len(samples) < 200):
            between()
            # Or what is left of it would hide the time that launches take.
            settle()
            samples.append(clock(repeat))
        return Timing(samples, repeat)

    def cache_bytes(self):
        """Of the last-level cache, which inputs must exceed; 0: nothing is claimed of times here."""
        return 0

    def free_bytes(self):
        return 1 << 30

    def release(self):
        """Gives memory back that PyTorch keeps for later: the library takes its own from the driver."""

    def describe(self):
        model = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "CPU")
        return {"name": model, "torch": torch.__version__}

    def clocks(self):
        return None


class Gpu(Cpu):
    name, backend, tensors, graphs = "cuda", "SKC_BACKEND_CUDA", "cuda", True
    # The launch of the first replay, tens of microseconds, is in it.
    least = 6e-3

    def __init__(self):
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        # The legacy default stream cannot be captured: everything runs in this one.
        self.side = torch.cuda.Stream()
        torch.cuda.set_stream(self.side)
        self.driver = Driver()
        try:
            import pynvml
            pynvml.nvmlInit()
            self.nvml, self.handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        except Exception:
            self.nvml = None

    def stream(self):
        return self.side.cuda_stream

    def synchronize(self):
        torch.cuda.synchronize()

    def capture(self, call):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.side):
            call()
        return graph.replay

    def count_launches(self, call):
        torch.cuda.synchronize()
        return self.driver.count_nodes(self.stream(), call)

    def _clock(self, call, repeat):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeat):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeat

    def cache_bytes(self):
        return getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)

    def release(self):
        torch.cuda.empty_cache()

    def free_bytes(self):
        self.release()
        return torch.cuda.mem_get_info()[0]

    def describe(self):
        p = torch.cuda.get_device_properties(0)
        said = {"name": p.name, "capability": f"{p.major}.{p.minor}", "multiprocessors": p.multi_processor_count,
                "l2_bytes": self.cache_bytes(), "memory_bytes": p.total_memory, "torch": torch.__version__,
                "cuda": torch.version.cuda}
        try:
            said["driver"] = subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                text=True,
                stdout=subprocess.PIPE,
                timeout=10,
            ).stdout.split("\n")[0]
        except (OSError, subprocess.SubprocessError):
            pass
        return said

    def clocks(self):
        """Clocks in MHz, watts and degrees as they are now; None where nothing tells them."""
        try:
            if self.nvml:
                n, h = self.nvml, self.handle
                return {
                    "sm": n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM),
                    "mem": n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM),
                    "watts": round(n.nvmlDeviceGetPowerUsage(h) / 1e3),
                    "celsius": n.nvmlDeviceGetTemperature(h, 0),
                }
            text = subprocess.run(
                [
                    "nvidia-smi",
                    "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu",
                    "--format=csv,noheader,nounits",
                ],
                text=True,
                stdout=subprocess.PIPE,
                timeout=10,
            ).stdout
            return dict(
                zip(("sm", "mem", "watts", "celsius"), (round(float(x)) for x in text.split("\n")[0].split(",")))
            )
        except Exception:
            return None


class Driver:
    """The few calls of the CUDA driver that PyTorch does not offer."""

    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name, *arguments):
        code = getattr(self.lib, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} gave {code}")

    def capture(self, stream, call):
        """Graph of what `call` puts into the stream; none of it runs."""
        graph, relaxed = ctypes.c_void_p(), 2
        self("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), relaxed)
        try:
            call()
        finally:
            self("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        return graph

    def count_nodes(self, stream, call):
        graph, n = self.capture(stream, call), ctypes.c_size_t()
        self("cuGraphGetNodes", graph, None, ctypes.byref(n))
        self("cuGraphDestroy", graph)
        return n.value


class Shim(Cpu):
    """A driver that runs kernels on the CPU: start the program with its folder in LD_LIBRARY_PATH."""

    name, backend, tensors, graphs = "shim", "SKC_BACKEND_CUDA", "cpu", True

    def __init__(self):
        super().__init__()
        self.driver = Driver()
        if not hasattr(self.driver.lib, "skc_shim_count_launches"):
            raise RuntimeError("libcuda.so.1 is not the stand-in: put its folder into LD_LIBRARY_PATH")
        self.driver.lib.skc_shim_count_launches.restype = ctypes.c_uint64
        device, context, self.handle = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.driver("cuInit", 0)
        self.driver("cuDeviceGet", ctypes.byref(device), 0)
        self.driver("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.driver("cuCtxSetCurrent", context)
        self.driver("cuStreamCreate", ctypes.byref(self.handle), 1)

    def stream(self):
        return self.handle.value

    def synchronize(self):
        self.driver("cuStreamSynchronize", self.handle)

    def capture(self, call):
        graph, ready = self.driver.capture(self.stream(), call), ctypes.c_void_p()
        self.driver("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        return lambda: self.driver("cuGraphLaunch", ready, self.handle)

    def count_launches(self, call):
        before = self.driver.lib.skc_shim_count_launches()
        call()
        self.synchronize()
        return self.driver.lib.skc_shim_count_launches() - before

    def describe(self):
        return {"name": "tools/cuda_shim, a stand-in for a GPU: times mean nothing", "torch": torch.__version__}


def place_of(name):
    return {"cpu": Cpu, "cuda": Gpu, "shim": Shim}[name]()
