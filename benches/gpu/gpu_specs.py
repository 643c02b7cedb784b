"""Published limits of the architectures and rates of some devices; how many blocks of a kernel a multiprocessor holds.

Limits: CUDA C++ Programming Guide 13.0, appendix "Compute Capabilities", tables of technical specifications. Registers
are allocated to warps in units of 256 (CUDA Occupancy Calculator). Rates: the vendors' datasheets (dense f16 with f32
sums, without sparsity).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arch:
    """Limits of a multiprocessor, and of shared memory per block."""

    threads: int
    blocks: int
    shared: int  # bytes
    shared_block: int
    registers: int = 65536


ARCHS = {
    "sm_80": Arch(2048, 32, 164 << 10, 163 << 10),
    "sm_86": Arch(1536, 16, 100 << 10, 99 << 10),
    "sm_89": Arch(1536, 24, 100 << 10, 99 << 10),
    "sm_90a": Arch(2048, 32, 228 << 10, 227 << 10),
    "sm_100": Arch(2048, 32, 228 << 10, 227 << 10),
    "sm_120": Arch(1536, 24, 100 << 10, 99 << 10),
}
# Shared memory of every block that the system reserves.
RESERVED = 1024


@dataclasses.dataclass(frozen=True)
class Device:
    arch: str
    multiprocessors: int
    bytes_per_s: float
    flops: float


DEVICES = {
    "A100 SXM 80 GB": Device("sm_80", 108, 2.039e12, 312e12),
    "RTX A6000": Device("sm_86", 84, 0.768e12, 154.8e12),
    "L40S": Device("sm_89", 142, 0.864e12, 362e12),
    "H100 SXM": Device("sm_90a", 132, 3.35e12, 989e12),
    "H200 SXM": Device("sm_90a", 132, 4.8e12, 989e12),
    "B200": Device("sm_100", 148, 8.0e12, 2250e12),
    "RTX 5090": Device("sm_120", 170, 1.792e12, 209.5e12),
}


def occupancy(arch, threads, registers, shared):
    """-> (blocks that are resident on a multiprocessor, what limits them)"""
    limits = {
        "threads": arch.threads // threads,
        "blocks": arch.blocks,
        "shared memory": arch.shared // (shared + RESERVED),
    }
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // 256) * 256
    # Each of the four schedulers has a quarter of the registers for its warps.
    limits["registers"] = arch.registers // 4 // registers_of_warp * 4 // warps
    if shared > arch.shared_block:
        limits["shared memory"] = 0
    limit = min(limits, key=limits.get)
    return limits[limit], limit
