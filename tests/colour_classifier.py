"""A classifier of conftest's coloured images that is right about most and falls to attacks little by little."""

import torch
from torch import Tensor, nn


class ColourClassifier(nn.Module):
    """Distances to the four colours, disturbed by a small convolution: curved, so that attacks need their steps."""

    def __init__(self, disturbance: float = 0.2):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
        self.kernel = nn.Parameter(0.3 * draw(8, 3, 3, 3))
        self.head = nn.Parameter(disturbance * draw(4, 8))
        colours = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]]) / 255
        self.register_buffer("colours", (colours - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.25, 0.2]))
        self.forwards = 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # a graph would hold for one count alone
            self.forwards += 1
        features = torch.tanh(nn.functional.conv2d(pixel_values, self.kernel, stride=2)).mean((2, 3))
        distances = (pixel_values.mean((2, 3))[:, None] - self.colours).square().sum(2)
        return features @ self.head.T - 0.1 * distances
