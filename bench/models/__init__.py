"""Networks that can be compressed.

A model is a function (in_channels, num_classes) → nn.Module; one that depends on the size of the images takes
`image_size`, their height, as well. It is named by its entry point, or as `package.module:function`.
"""
