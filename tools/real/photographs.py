"""Questions about photographs that scikit-image ships: 18 pictures, 72 records, a box for the main thing of each."""

from __future__ import annotations

import json
from pathlib import Path

import skimage.data
from PIL import Image

ASKED: dict[str, dict[str, str]] = {
    "astronaut.png": {
        "Who is in the picture?": "An astronaut.",
        "What colour is the suit?": "Orange.",
        "Is the person smiling?": "Yes.",
        "What stands in the background?": "A flag and a model of a space shuttle.",
    },
    "brick.png": {
        "What does the picture show?": "A brick wall.",
        "Is there a person in the picture?": "No.",
        "Is the picture in colour?": "No, it is grey.",
        "What shape are the parts of the wall?": "Rectangles.",
    },
    "camera.png": {
        "What is the man doing?": "He is taking a photograph.",
        "What does the camera stand on?": "A tripod.",
        "Is the picture in colour?": "No, it is grey.",
        "Is there a person in the picture?": "Yes.",
    },
    "cell.png": {
        "What does the picture show?": "A cell under a microscope.",
        "Is there a person in the picture?": "No.",
        "Is the picture in colour?": "No, it is grey.",
        "How many cells are there?": "One.",
    },
    "chelsea.png": {
        "Which animal is in the picture?": "A cat.",
        "What is the name of the cat?": "Chelsea.",
        "Is there a person in the picture?": "No.",
        "What colour is the fur?": "Ginger.",
    },
    "clock_motion.png": {
        "What does the picture show?": "A clock.",
        "Is the picture sharp?": "No, it is blurred by motion.",
        "Is there a person in the picture?": "No.",
        "What shape is the clock?": "Round.",
    },
    "coffee.png": {
        "What is in the cup?": "Coffee.",
        "What lies beside the cup?": "A spoon.",
        "What does the cup stand on?": "A saucer.",
        "Is there a person in the picture?": "No.",
    },
    "coins.png": {
        "What does the picture show?": "Old coins.",
        "How are the coins laid out?": "In rows.",
        "Is the picture in colour?": "No, it is grey.",
        "What shape are the coins?": "Round.",
    },
    "grass.png": {
        "What does the picture show?": "Grass.",
        "Is there a person in the picture?": "No.",
        "Is the picture in colour?": "No, it is grey.",
        "Is it indoors or outdoors?": "Outdoors.",
    },
    "gravel.png": {
        "What does the picture show?": "Gravel.",
        "Is there an animal in the picture?": "No.",
        "Is the picture in colour?": "No, it is grey.",
        "What is gravel made of?": "Small stones.",
    },
    "hubble_deep_field.jpg": {
        "What does the picture show?": "Galaxies.",
        "Which telescope took the picture?": "Hubble.",
        "What colour is the background?": "Black.",
        "Is there a person in the picture?": "No.",
    },
    "ihc.png": {
        "What does the picture show?": "Stained tissue under a microscope.",
        "Is the picture in colour?": "Yes.",
        "Is there a person in the picture?": "No.",
        "Which two colours are the stains?": "Brown and blue.",
    },
    "moon.png": {
        "What does the picture show?": "The surface of the moon.",
        "What are the round hollows?": "Craters.",
        "Is the picture in colour?": "No, it is grey.",
        "Is there a person in the picture?": "No.",
    },
    "motorcycle_left.png": {
        "Which vehicle is in the picture?": "A motorcycle.",
        "How many wheels has it?": "Two.",
        "Is it indoors or outdoors?": "Indoors.",
        "Is the picture in colour?": "Yes.",
    },
    "page.png": {
        "What does the picture show?": "A printed page.",
        "Is the light even?": "No, a part is dark.",
        "Is there an animal in the picture?": "No.",
        "Is the picture in colour?": "No, it is grey.",
    },
    "retina.jpg": {
        "What does the picture show?": "The retina of an eye.",
        "What are the dark lines?": "Blood vessels.",
        "What shape is the bright part?": "Round.",
        "Is the picture in colour?": "Yes.",
    },
    "rocket.jpg": {
        "What does the picture show?": "A rocket.",
        "Where does the rocket stand?": "On its launch pad.",
        "Is it indoors or outdoors?": "Outdoors.",
        "Is the picture in colour?": "Yes.",
    },
    "text.png": {
        "What does the picture show?": "Handwriting.",
        "Is there a person in the picture?": "No.",
        "Is the picture in colour?": "No, it is grey.",
        "Is it printed or written by hand?": "By hand.",
    },
}
"""Question and answer by photograph."""

LABELS = {"astronaut.png": "astronaut", "chelsea.png": "cat", "coffee.png": "cup", "rocket.jpg": "rocket"}


def write_photographs(folder: Path, number: int = len(ASKED)) -> None:
    """Writes ``images/``, ``records.json`` and ``boxes.json`` (the whole picture, where nobody drew a closer one).

    Args:
        folder: to write to.
        number: of photographs, from the first on; each has four records.
    """
    source = Path(skimage.data.__file__).parent
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records, boxes = [], []
    for name, asked in list(ASKED.items())[:number]:
        picture = Image.open(source / name).convert("RGB")
        target = f"{Path(name).stem}.png"
        picture.save(folder / "images" / target)
        width, height = picture.size
        label = LABELS.get(name, "scene")
        box = {"boxes": [[0, 0, width, height]], "labels": [label], "scores": [1.0], "width": width, "height": height}
        boxes.append({"image": target, **box})
        for place, (question, answer) in enumerate(asked.items()):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            records.append({"id": f"{Path(name).stem}_{place}", "image": target, "conversations": turns})
    (folder / "records.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    (folder / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
