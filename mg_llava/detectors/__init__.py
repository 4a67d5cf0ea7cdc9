"""Finding boxes in any picture: one small interface, pictures → boxes in their own frame, and a class per detector.

``generation`` runs a detector over a folder of pictures and writes a box file.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Detector", "NoDetector", "read_vocabulary"],
        "files": ["BoxFileDetector"],
        "florence2": ["Florence2Detector"],
        "grounded": ["GroundingDinoDetector", "OmdetTurboDetector"],
        "owlv2": ["Owlv2Detector"],
        "tags": ["RamTagger", "TagFile"],
        "generation": ["BoxGeneration"],
    },
)
