"""From latents to the genes: the network, and latents to which conditions are added."""

from pyro_fcr.decoders.additive import AdditiveDecoder
from pyro_fcr.decoders.base import Decoder
from pyro_fcr.decoders.network import NetworkDecoder

__all__ = ["AdditiveDecoder", "Decoder", "NetworkDecoder"]
