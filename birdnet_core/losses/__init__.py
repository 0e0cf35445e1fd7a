"""The losses, one a file. Each takes the training clips per class and its options as keywords.

A loss is called with (logits [batch, classes], targets), where targets are class indices [batch] or
probabilities [batch, classes], and returns a scalar. Its `normaliser(targets)` is the divisor of
that scalar, so that parts of a batch can be added up: the loss of the whole is the sum of loss * normaliser
of the parts, divided by the normaliser of the whole.
"""
