"""Where a measurement runs: a GPU, this CPU, or the CUDA stand-in of tools/cuda_shim.

A platform owns a stream, captures calls into graphs, measures times, and describes the device. The CPU has no graphs: a
"graph" is the call itself. On the stand-in, tensors are ordinary memory, which is its device memory too; times mean
nothing there.
"""

import ctypes
import statistics
import subprocess
import time

import torch

from cuda_driver import Driver


class Timing:
    """Samples of the seconds of a call, each the mean of `repeat` calls."""

    def __init__(self, samples, repeat):
        self.samples, self.repeat = sorted(samples), repeat

    @property
    def median(self):
        return statistics.median(self.samples)

    def quantile(self, share):
        return self.samples[min(len(self.samples) - 1, int(share * len(self.samples)))]


class Cpu:
    name, backend, torch_device, graphs = "cpu", "SKC_BACKEND_CPU", "cpu", False
    # A sample repeats the call until it takes about this many seconds.
    sample_seconds = 2e-3

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
        """Takes samples of `call` for this many seconds. `between` is called before each, untimed."""
        self.mean_seconds(call, 1)
        once = max(self.mean_seconds(call, 1), 1e-7)
        repeat = max(1, min(1000, round(self.sample_seconds / once)))
        samples, until = [], time.perf_counter() + seconds
        while len(samples) < 3 or (time.perf_counter() < until and len(samples) < 200):
            between()
            # Pending work of `between` would hide the time of launches.
            self.synchronize()
            samples.append(self.mean_seconds(call, repeat))
        return Timing(samples, repeat)

    def mean_seconds(self, call, repeat):
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(repeat):
            call()
        self.synchronize()
        return (time.perf_counter() - begin) / repeat

    def cache_bytes(self):
        """Size of the last-level cache, which inputs must exceed; 0 where times are not evaluated."""
        return 0

    def free_bytes(self):
        return 1 << 30

    def release(self):
        """Frees memory that PyTorch caches: the library allocates its own from the driver."""

    def describe(self):
        model = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "CPU")
        return {"name": model, "torch": torch.__version__}

    def clocks(self):
        return None


class Gpu(Cpu):
    name, backend, torch_device, graphs = "cuda", "SKC_BACKEND_CUDA", "cuda", True
    # Long, since a sample includes the latency of its first graph launch, tens of microseconds.
    sample_seconds = 6e-3

    def __init__(self):
        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        # The legacy default stream cannot be captured: everything runs in another one.
        self.torch_stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.torch_stream)
        self.driver = Driver()
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml, self.handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        except Exception:
            self.nvml = None

    def stream(self):
        return self.torch_stream.cuda_stream

    def synchronize(self):
        torch.cuda.synchronize()

    def capture(self, call):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.torch_stream):
            call()
        return graph.replay

    def count_launches(self, call):
        torch.cuda.synchronize()
        return self.driver.count_nodes(self.stream(), call)

    def mean_seconds(self, call, repeat):
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
        found = {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "l2_bytes": self.cache_bytes(),
            "memory_bytes": p.total_memory,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
        try:
            found["driver"] = subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                text=True,
                stdout=subprocess.PIPE,
                timeout=10,
            ).stdout.split("\n")[0]
        except (OSError, subprocess.SubprocessError):
            pass
        return found

    def clocks(self):
        """Current clocks in MHz, watts and degrees; None if they cannot be read."""
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


class Shim(Cpu):
    """The CUDA stand-in, which runs kernels on the CPU. Its folder must be in LD_LIBRARY_PATH."""

    name, backend, torch_device, graphs = "shim", "SKC_BACKEND_CUDA", "cpu", True

    def __init__(self):
        super().__init__()
        self.driver = Driver()
        if not hasattr(self.driver.lib, "skc_shim_count_launches"):
            raise RuntimeError("libcuda.so.1 is not the stand-in: its folder must be in LD_LIBRARY_PATH")
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
        graph, executable = self.driver.capture(self.stream(), call), ctypes.c_void_p()
        self.driver("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        return lambda: self.driver("cuGraphLaunch", executable, self.handle)

    def count_launches(self, call):
        before = self.driver.lib.skc_shim_count_launches()
        call()
        self.synchronize()
        return self.driver.lib.skc_shim_count_launches() - before

    def describe(self):
        return {"name": "tools/cuda_shim, a CUDA stand-in: times mean nothing", "torch": torch.__version__}


def open_platform(name):
    return {"cpu": Cpu, "cuda": Gpu, "shim": Shim}[name]()
