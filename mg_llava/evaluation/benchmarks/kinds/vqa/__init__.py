"""Questions of the VQA challenges and their like, in JSON lines: VQAv2 and TextVQA, GQA, VizWiz."""
