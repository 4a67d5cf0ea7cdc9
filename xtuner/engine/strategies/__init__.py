"""How a step is spread over devices: plain or DDP, and DeepSpeed's ZeRO."""
