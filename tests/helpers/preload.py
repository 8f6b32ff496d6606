"""Importing this does what transformers does when it first loads a model: it takes a second, and is kept."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("mt5")
