"""The way the published boxes were made: RAM++ tags, then OWLv2 (threshold 0.2). TagFile can replace RamTagger."""

from mg_llava.detectors import BoxGeneration, Owlv2Detector, RamTagger

detector_path = "google/owlv2-large-patch14-ensemble"
tagger = dict(type=RamTagger, path="checkpoints/ram_plus_swin_large_14m.pth")
detector = dict(
    type=Owlv2Detector, name_or_path="${detector_path}", tagger="${tagger}", threshold=0.2, dtype="bfloat16"
)
data_columns = None
box_generation = dict(type=BoxGeneration, detector="${detector}", data_columns="${data_columns}")
