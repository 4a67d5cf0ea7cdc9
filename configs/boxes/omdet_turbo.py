"""OmDet-Turbo, the fastest."""

from mg_llava.detectors import BoxGeneration, OmdetTurboDetector

detector_path = "omlab/omdet-turbo-swin-tiny-hf"
vocabulary = None
detector = dict(type=OmdetTurboDetector, name_or_path="${detector_path}", vocabulary="${vocabulary}")
data_columns = None
box_generation = dict(type=BoxGeneration, detector="${detector}", data_columns="${data_columns}")
