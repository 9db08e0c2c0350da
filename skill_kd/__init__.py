"""skill-kd: LLM knowledge distillation that a coding agent or an engineer can trust."""

__version__ = "0.1.0"
