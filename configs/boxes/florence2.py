"""Florence-2: its own classes, no scores."""

from mg_llava.detectors import BoxGeneration, Florence2Detector

detector_path = "florence-community/Florence-2-large"
detector = dict(type=Florence2Detector, name_or_path="${detector_path}", dtype="bfloat16")
data_columns = None
box_generation = dict(type=BoxGeneration, detector="${detector}", data_columns="${data_columns}")
