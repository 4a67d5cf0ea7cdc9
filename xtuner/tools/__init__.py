"""The commands of the `xtuner` program, one file each."""
