"""Models: those that can be had (`catalog`), those that are here and how they get here (`store`)."""

from stenograf.models.found import Installed, ModelFiles
from stenograf.models.store import ModelStore, PullProgress

__all__ = ["Installed", "ModelFiles", "ModelStore", "PullProgress"]
