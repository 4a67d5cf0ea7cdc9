"""Finding boxes in any picture: one small interface, pictures → boxes in their own frame, and a class per detector."""

from __future__ import annotations

from mg_llava.detectors.base import Detector, NoDetector, read_vocabulary
from mg_llava.detectors.files import BoxFileDetector
from mg_llava.detectors.florence2 import Florence2Detector
from mg_llava.detectors.grounded import GroundingDinoDetector, OmdetTurboDetector
from mg_llava.detectors.owlv2 import Owlv2Detector
from mg_llava.detectors.tags import RamTagger, TagFile

__all__ = [
    "BoxFileDetector",
    "Detector",
    "Florence2Detector",
    "GroundingDinoDetector",
    "NoDetector",
    "OmdetTurboDetector",
    "Owlv2Detector",
    "RamTagger",
    "TagFile",
    "read_vocabulary",
]
