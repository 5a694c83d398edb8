"""The lattice of the whole Earth as a file: embeddings without the network."""
