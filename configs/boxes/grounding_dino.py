"""Grounding-DINO; set `detector_path` for MM-Grounding-DINO or LLMDet."""

from mg_llava.detectors import BoxGeneration, GroundingDinoDetector

detector_path = "IDEA-Research/grounding-dino-base"
vocabulary = None
detector = dict(type=GroundingDinoDetector, name_or_path="${detector_path}", vocabulary="${vocabulary}")
data_columns = None
box_generation = dict(type=BoxGeneration, detector="${detector}", data_columns="${data_columns}")
