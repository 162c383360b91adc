"""Images or sounds out of a trained denoiser; below, images stand for both.

In comes the validated configuration of ddpm-sample or ddpm-analytic (run, measure_variance), or a denoiser in training
(preview). pipeline joins a checkpoint with what was asked for, and tells how one image is drawn; checks holds what is
refused; generate the noise and labels of image k; edit_inputs the images an edit starts from; batch_size how many are
drawn at once. Out go images/*.png or sounds/*.wav (as their medium writes them), and what shows them together
(pictures, animation) or says how to draw them again (record): image k depends on the seed and k alone, so share can
deal the batches out to ranks.
"""
