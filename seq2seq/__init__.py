"""The encoder-decoder Transformer: data, model, training, search, translation."""
