"""Images to features: an extractor each, named by its `_target_`.

In come uint8 images of any size, grey or RGB; out go features and, where the extractor has classes, probabilities. How
an image is brought to the extractor (size, range, channels) belongs to it and is recorded, as is a hash of its weights.
"""
