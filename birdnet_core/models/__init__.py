"""The networks, one a file. Each takes (input_shape, n_classes) and its options as keywords.

A model that can start from pretrained weights has an attribute `backbone`, the module that they fill. Its
other parameters are the head, which always starts fresh, so that the two may have different learning
rates. With `freeze_backbone` the parameters of `backbone` take no gradient, and it stays in eval mode. Models
without `backbone` are all head. `backbone.py` and `pretrained.py` hold what such models share.
"""
