"""Picture files of a folder or an archive, and the index that finds them."""
