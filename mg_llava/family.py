"""What xtuner's commands ask of this model family.

They find it by the name of the package: an exported folder's ``model_type``, or a config's model class.
"""

from mg_llava.boxes.store import check_box_file
from mg_llava.evaluation import OwnRecords
from mg_llava.hf import load_assistant, load_model, published_weights, save_checkpoint, save_pretrained
from mg_llava.hf.llava import from_llava, to_llava
from mg_llava.hf.quantizing import quantize_folder
from mg_llava.inference.chat import ChatSession
from mg_llava.model.checkpoint_names import to_published_names
from mg_llava.serving.vllm.offline import OfflineEngine as offline_engine

__all__ = [
    "ChatSession",
    "OwnRecords",
    "check_box_file",
    "from_llava",
    "load_assistant",
    "load_model",
    "offline_engine",
    "published_weights",
    "quantize_folder",
    "save_checkpoint",
    "save_pretrained",
    "to_llava",
    "to_published_names",
]
