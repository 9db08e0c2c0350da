"""An OpenAI-compatible endpoint: JSON over HTTP, with retries and within bounds.

``client`` has the requests, ``retries`` sends one again, ``exchange`` sends one once. The key goes only to the address
that the user named. Only this package imports httpx and tenacity.
"""

from .client import Endpoint
from .exchange import Names, Refused

__all__ = ["Endpoint", "Names", "Refused"]
