"""Training data in whichever form it comes: JSON, Parquet, Arrow, WebDataset or a data set of the Hub, as records with
pictures that stay in their files.

    locate      from a `data_path` to files of one kind
    hub         the files of a data set of the Hub
    columns     a row of a table to a record
    table       records of Parquet and Arrow files
    webdataset  records of tar shards
    json_file   records of JSON and JSONL
    source      opens whichever of these it is
    pictures    opens pictures by their place in a source
"""

from xtuner.data.sources.pictures import open_pictures
from xtuner.data.sources.source import open_source

__all__ = ["open_pictures", "open_source"]
