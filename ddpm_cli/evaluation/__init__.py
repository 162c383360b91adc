"""How good images or sounds are, in numbers that carry their protocol; below, images stand for both.

In come images as uint8, or sounds as int16, and a prepared data set. features/ turns them into features (and class
probabilities); reference has those of real images, and the floor that real images score against real ones; metrics/
compares the two, each figure with the interval in which another seed's would lie.
"""
