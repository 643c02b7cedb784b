"""A device-to-device copy that moves as many bytes as the case's step; read and written bytes both count."""

import torch

from contenders.base import Contender


class Copy(Contender):
    name, family = "copy of as many bytes", "copy"

    @classmethod
    def supports(cls, case, platform):
        return case.decode and case.start == 0

    def prepare(self):
        half = max(16, self.case.step_bytes // 2 // 16 * 16)
        # Other memory for every layer, so that nothing is in the L2 cache.
        self.source = [
            torch.randint(0, 255, (half,), dtype=torch.uint8, device=self.platform.torch_device)
            for _ in range(self.data.layers)
        ]
        self.target = [torch.empty_like(x) for x in self.source]

    def step(self, layer):
        self.target[layer].copy_(self.source[layer])

    def checked_output(self, layer):
        return self.target[layer][:4096].double() + 1

    def reference(self, layer, passes):
        return self.source[layer][:4096].double() + 1


CONTENDERS = (Copy,)
