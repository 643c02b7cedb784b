"""vLLM's worker, which looks at a model when it has been loaded."""
from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from ._vllm_model import prepare

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Stock
else:
    from vllm.v1.worker.gpu_worker import Worker as Stock


class Worker(Stock):  # type: ignore[misc]
    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        prepare(self.get_model(), self.vllm_config, self.device)
