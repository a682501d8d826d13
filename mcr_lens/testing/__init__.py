"""For tests, yours included: tiny models of every family, and models whose right answer is known.

Everything is made in memory, in milliseconds, without a network.
"""

from mcr_lens.testing.families import FAMILIES as FAMILIES
from mcr_lens.testing.families import Family as Family
from mcr_lens.testing.families import tiny_model as tiny_model
from mcr_lens.testing.planted import MECHANISMS as MECHANISMS
from mcr_lens.testing.planted import CommonDirection as CommonDirection
from mcr_lens.testing.planted import Massive as Massive
from mcr_lens.testing.planted import PlantedModel as PlantedModel
from mcr_lens.testing.planted import Sinks as Sinks
from mcr_lens.testing.planted import Truth as Truth
from mcr_lens.testing.planted import plant as plant
from mcr_lens.testing.planted import planted_model as planted_model
from mcr_lens.testing.planted import planted_prompts as planted_prompts
