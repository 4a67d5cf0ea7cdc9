"""Boxes of pictures: chosen, read from files, looked up, drawn. Knows no model.

``selection`` holds the geometry and the choice; ``records`` reads one record; ``index`` builds what ``store`` looks up;
``drawing`` shows them; ``urls`` puts them into a picture's URL.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "selection": [
            "BoxSelection",
            "PictureBoxes",
            "clip_boxes",
            "drop_lowest",
            "limit_boxes",
            "nms_per_class",
            "no_boxes",
            "pad_boxes",
            "resize_boxes",
            "valid_boxes",
        ],
        "sense": ["odd_boxes"],
        "records": ["BoxRecord", "parse_box_record"],
        "store": ["BoxStore"],
        "drawing": ["draw_boxes"],
        "urls": ["with_boxes"],
    },
)
