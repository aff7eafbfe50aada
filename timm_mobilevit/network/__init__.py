"""The network: patches, layers, transformers, blocks and the model. Nothing here reads files or weights."""
