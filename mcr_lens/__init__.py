"""Attention sinks, massive activations and compression valleys, measured on any TransformerLens model.

What is public stands in `__init__.pyi`, one page; each name is imported when it is first used, so that
`mcr-lens --help` need not wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
