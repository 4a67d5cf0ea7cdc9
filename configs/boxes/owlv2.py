"""OWLv2 over a vocabulary: the shipped everyday objects unless `vocabulary` names a file."""

from mg_llava.detectors import BoxGeneration, Owlv2Detector

detector_path = "google/owlv2-large-patch14-ensemble"
vocabulary = None
detector = dict(type=Owlv2Detector, name_or_path="${detector_path}", vocabulary="${vocabulary}", dtype="bfloat16")
data_columns = None
box_generation = dict(type=BoxGeneration, detector="${detector}", data_columns="${data_columns}")
