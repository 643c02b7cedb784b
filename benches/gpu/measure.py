"""A contender on a case: prepared, checked, timed."""

import gc
import math

import torch

from data import TOLERANCE, error_of

# Steps of a graph at least, so that the cost of its launch is small for each.
NODES = 32


def layers_for(case, platform, few=False):
    """Number of layers, each with its own cache, that together exceed three times the L2 cache; 0 if none fits."""
    if few:
        return 2
    row = case.n_seqs * case.chunk * (2 * case.q_heads + 2 * case.kv_heads) * case.dim * 2
    ring = case.layer_bytes * (1 + max(case.chunk, 256) / case.cached) + row
    # Leaves memory for blocks of tokens, and for temporaries while a layer is prepared.
    available = 0.85 * platform.free_bytes() - 4 * case.layer_bytes - 16 * row
    fit = int(available / ring)
    least = NODES if case.decode else 4
    return max(0, min(fit, max(least, 3 * platform.cache_bytes() // case.layer_bytes + 1)))


def loops_for(case, layers):
    """How often a graph repeats all layers."""
    return max(1, math.ceil((NODES if case.decode else 4) / layers))


class WrongResult(Exception):
    """A result that differs from the reference."""


def verify(contender, passes):
    """-> the largest error of the first and the last layer; raises WrongResult if it is more than rounding explains."""
    contender.platform.synchronize()
    contender.verify()
    worst = 0.0
    for layer in sorted({0, contender.data.layers - 1}):
        error = error_of(contender.checked_output(layer), contender.reference(layer, passes))
        # Written so that NaN fails.
        if not error <= TOLERANCE[contender.case.dtype]:
            raise WrongResult(
                f"wrong: max error {error:.2e} in layer {layer} after {passes} steps, "
                f"allowed {TOLERANCE[contender.case.dtype]:.0e}"
            )
        worst = max(worst, error)
    return worst


def measure(kind, case, platform, data, seconds):
    """A row for each of a contender's modes: a dictionary with "mode", "status" and results. All modes are checked
    before the first one is timed, because timing changes the contents of the caches."""
    contender, rows, calls, passes = None, [], {}, 0
    loops = loops_for(case, data.layers)
    try:
        try:
            contender = kind(case, platform, data)
            contender.step_all_layers()
            passes, error = 1, verify(contender, 1)
            launches = count_launches(contender) if contender.family == "sinkcache" else None
            # The stand-in counts launches by executing the step.
            passes += launches is not None and platform.name == "shim"
        except Exception as e:
            return [{"mode": mode, **failure(e)} for mode in kind.modes]

        def work():
            for _ in range(loops):
                contender.step_all_layers()

        for mode in kind.modes:
            try:
                call = platform.capture(work) if mode == "graph" else work
                call()
                passes += loops
                calls[mode] = call, max(error, verify(contender, passes))
            except Exception as e:
                rows.append({"mode": mode, **failure(e)})
                break
        for mode, (call, error) in calls.items():
            try:
                taken = platform.time(call, seconds, data.refresh)
                contender.verify()
                rows.append(
                    {"mode": mode, **numbers(case, taken, loops, data.layers), "error": error, "launches": launches}
                )
            except Exception as e:
                rows.append({"mode": mode, **failure(e)})
                break
        return rows
    finally:
        close(contender)
        # Frees the memory of graphs and contender, which the next one needs.
        contender = call = calls = work = None
        gc.collect()
        try:
            platform.release()
        except Exception as e:
            print(f"after {kind.name}: {first_line(e)}", flush=True)


def close(contender):
    try:
        if contender is not None:
            contender.close()
    except Exception as e:
        print(f"closing {contender.name}: {first_line(e)}", flush=True)


def count_launches(contender):
    """Launches of the first layer's step; None where they cannot be counted."""
    try:
        found = contender.platform.count_launches(lambda: contender.step(0))
        if contender.platform.name == "shim":
            for layer in range(1, contender.data.layers):
                contender.step(layer)
        return found
    except Exception as e:
        print(f"launches of {contender.name} were not counted: {first_line(e)}", flush=True)
        return None


def numbers(case, taken, loops, layers):
    """The fields of a row for the times of one step."""
    nodes = loops * layers
    us, low, high = (x / nodes * 1e6 for x in (taken.median, taken.quantile(0.25), taken.quantile(0.75)))
    return {
        "status": "ok",
        "us": us,
        "us_quartiles": [low, high],
        "samples": len(taken.samples),
        "replays": taken.repeat,
        "layers": layers,
        "nodes": nodes,
        "bytes": case.step_bytes,
        "gb_s": case.step_bytes / us / 1e3,
        "flops": case.step_flops,
        "tflop_s": case.step_flops / us / 1e6,
    }


# What libraries raise if they do not support a shape or a device, or cannot compile.
UNAVAILABLE = ("No available kernel", "Could not find nvcc", "is only supported on")


def failure(e):
    if isinstance(e, WrongResult):
        return {"status": "wrong", "note": str(e)}
    if isinstance(e, (ImportError, NotImplementedError)) or any(text in str(e) for text in UNAVAILABLE):
        return {"status": "unavailable", "note": first_line(e)}
    return {"status": "error", "note": f"{type(e).__name__}: {first_line(e)}"}


def first_line(e):
    text = str(e).strip() or repr(e)
    return text.split("\n")[0][:300]


def ceiling(platform, few=False):
    """Bytes per second of a plain copy, read and written bytes both counted: the largest of a few sizes."""
    found = {}
    for mebi in (8,) if few else (64, 512, 2048):
        try:
            source = torch.randint(0, 255, (mebi << 20,), dtype=torch.uint8, device=platform.torch_device)
            target = torch.empty_like(source)
            found[mebi] = 2 * source.numel() / platform.time(lambda: target.copy_(source), 0.1).median
            del source, target
        except Exception as e:
            print(f"copy of {mebi} MiB: {first_line(e)}", flush=True)
    return found
