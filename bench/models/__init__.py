"""Models: the networks that can be compressed.

A model is a function (in_channels, num_classes) → nn.Module. If the network depends on the size of the images, the
function also has a parameter `image_size`, their height. A model is named by its entry point, or by its location,
`package.module:function`. `build` makes the network, and `weights` finds its pretrained weights.
"""
