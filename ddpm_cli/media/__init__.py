"""What the items of a data set are outside the model: images or sounds. Their files, and what is shown of them.

In come items in the model's range, (B, *item_shape); out go what is written (uint8 pixels, int16 samples), files, and
pictures of them. What is done with items above asks their Medium, and knows of neither; only what there is of images
alone (bits per dimension, Inception) is refused there by name.
"""
