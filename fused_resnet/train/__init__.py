"""Training runs that show a fused model learning as its stock twin does."""

from .data import Data, load_data
from .loop import Epoch, TrainResult, train
from .settings import TrainSettings

__all__ = ["Data", "Epoch", "TrainResult", "TrainSettings", "load_data", "train"]
