"""Image classification on ImageNet: what the workloads that give one label an image share."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, from_numpy

from workloads import imagenet, images
from workloads.fidelity import top1_agreement
from workloads.protocol import WorkloadOptions
from workloads.vision import ImageWorkload

if TYPE_CHECKING:
    import numpy.typing as npt

    from workloads.protocol import Outputs

SIDES = {"full": 224, "small": 64}
CLASSES = 1000
IMAGENET_VALIDATION_IMAGES = 50_000


class ImageClassifier(ImageWorkload):
    """Images, synthetic or of a folder, to one int64 label each; a subclass brings the network."""

    fidelity = staticmethod(top1_agreement)

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(
            name, options, side=SIDES[options.size], images_in_data_set=IMAGENET_VALIDATION_IMAGES
        )

    def images(self) -> Callable[[int, Tensor], object]:
        folder = self.options.data
        if folder is None:
            return self.synthetic_images()

        data = imagenet.find(folder)
        files = data.images.files
        self.total_sample_count = len(files)
        self.notes.append(
            f"inputs: {len(files)} images of {folder}, short side to {images.short_side(self.side)}, "
            f"centre {self.side}×{self.side}, ImageNet mean and deviation"
        )
        if data.labels is None:
            self.notes.append(f"labels: none: {data.said_by}")
        else:
            self.labelled = imagenet.Top1(data.labels)
            self.notes.append(f"labels: of all {len(files)} images, by {data.said_by}")

        if self.options.size == "small":
            self.notes.append(
                f"the small model sees {self.side}×{self.side}: no accuracy to hold against MLPerf's"
            )

        def fill(index: int, row: Tensor) -> None:
            row.copy_(from_numpy(images.read(files[index], self.side)))

        return fill

    def reduced(self, raw: Tensor) -> Tensor:
        """The label with the highest logit, ``[B]`` int64 (MLPerf's PostProcessArgMaxPytorch, offset 0)."""
        return raw.argmax(dim=1)

    def answer(self, found: "npt.NDArray[Any]", indices: Sequence[int]) -> "Outputs":  # noqa: ARG002  of ImageWorkload
        return found
