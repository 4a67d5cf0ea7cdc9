"""What ``xtuner finetune`` is made of: records split by pictures (``split``), memory and disk that a run takes
(``sizes``), settings with their reasons (``recipe``), steps that a rerun goes on with (``steps``), and the answers to
its own records (``answers``).
"""
