"""A module that stays on its device when a fit is over, where its learner goes on with it."""

from typing import Self

from lightning import LightningModule


class StaysOnDevice(LightningModule):
    """Is not moved to the CPU at the end of a fit, as Lightning does, unless an error ended it.

    Moving a large model there and back takes seconds, and CUDA graphs read weights where they were recorded.
    """

    _stays = False

    def on_train_end(self) -> None:
        """Learning is over, and Lightning is about to move the module."""
        self._stays = True

    def on_fit_end(self) -> None:
        """The fit is over; from now on the module can be moved."""
        self._stays = False

    def cpu(self) -> Self:
        """Move to the CPU, but not the one time that Lightning asks for it while a fit ends."""
        stays, self._stays = self._stays, False
        return self if stays else super().cpu()
