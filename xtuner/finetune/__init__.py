"""What ``xtuner finetune`` is made of: records split by pictures (``split``), settings with their reasons (``recipe``),
the text of its configs (``configs``), steps that a rerun goes on with (``steps``), and what it answers (``answers``).
"""
