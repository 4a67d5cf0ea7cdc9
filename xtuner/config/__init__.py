"""Configs: mmengine's Python files, with '${name}' resolved after every override, then checked whole.

`load_config` is the way in. The modules follow its steps: ``paths`` finds the file, ``plain`` turns what it
holds into data that can be dumped, ``overrides`` applies ``--cfg-options``, ``references`` resolves,
``check`` reports mistakes.
"""

from xtuner.config.check import check_config
from xtuner.config.joining import join_config
from xtuner.config.loading import dump_config, load_config
from xtuner.config.overrides import parse_overrides
from xtuner.config.paths import config_name, config_root, find_config, list_configs

__all__ = [
    "check_config",
    "config_name",
    "config_root",
    "dump_config",
    "find_config",
    "join_config",
    "list_configs",
    "load_config",
    "parse_overrides",
]
