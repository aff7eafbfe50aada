"""The mathematics: patches, layers, transformers, blocks and the network. It knows no files and no weights."""
