"""Networks that can be compressed. A model is a function (in_channels, num_classes) → nn.Module."""
