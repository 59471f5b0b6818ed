"""Integer data: dequantisation, and decoders that give levels a probability."""
