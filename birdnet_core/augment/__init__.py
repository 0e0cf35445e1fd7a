"""The augmentations, one a file. Each changes a batch of training clips on its device, from a generator.

An augmentation is an `nn.Module` made from the sample rate and its options, of which `p` is the probability
that a clip is changed, drawn for each clip on its own; 0, the default, leaves it out of training. Its
`domain` names its input: ``waveform`` and ``features`` are called with (batch, generator) and return
the batch; ``mixture`` is called with (features, targets, generator), where targets are [batch, classes]
probabilities, and returns both.
"""
