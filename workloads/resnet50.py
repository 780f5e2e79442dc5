"""ResNet-50 v1.5, image classification: torchvision's ``resnet50``, whose 3×3 convolutions hold the stride."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, from_numpy, nn
from torchvision.models.resnet import Bottleneck, resnet50

from workloads import images
from workloads.protocol import WorkloadOptions
from workloads.vision import ImageWorkload, spread

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SIDES = {"full": 224, "small": 64}
IMAGENET_VALIDATION_IMAGES = 50_000

RESIDUAL_GAIN = 0.3
"""Of random weights: what each block adds, so that 16 blocks do not double the variance 16 times."""


def network() -> nn.Module:
    """ResNet-50 v1.5 with random weights: images ``[B, 3, H, W]`` to 1000 logits."""
    net: nn.Module = resnet50(weights=None)
    spread(net)
    for block in net.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, RESIDUAL_GAIN)

    return net


class Resnet50(ImageWorkload):
    """Images, synthetic or of a folder, to one int64 label each."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(
            name, options, side=SIDES[options.size], images_in_data_set=IMAGENET_VALIDATION_IMAGES
        )

    def build(self) -> nn.Module:
        return network()

    def images(self) -> Callable[[int, Tensor], object]:
        folder = self.options.data
        if folder is None:
            return self.synthetic_images()

        files = images.find(folder).files
        self.total_sample_count = len(files)
        self.notes.append(
            f"inputs: {len(files)} images of {folder}, short side to {images.short_side(self.side)}, "
            f"centre {self.side}×{self.side}, ImageNet mean and deviation"
        )

        def fill(index: int, row: Tensor) -> None:
            row.copy_(from_numpy(images.read(files[index], self.side)))

        return fill

    def answer(self, raw: Tensor, indices: Sequence[int]) -> "Outputs":  # noqa: ARG002  the protocol's
        """The label with the highest logit, ``[B]`` int64 (MLPerf's PostProcessArgMaxPytorch, offset 0)."""
        labels: Outputs = raw.argmax(dim=1).cpu().numpy()
        return labels
