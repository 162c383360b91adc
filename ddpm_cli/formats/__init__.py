"""Trained models as other programs keep them, in and out.

In comes a path that names a model: a run or checkpoint of ours, a folder of diffusers, a .safetensors file, or a state
dict of Ho's or OpenAI's programs with its flags (`flags`, names in `state_dicts`). `find` says which without torch, and
`opened` reads it as the Content of a checkpoint, so that nothing else knows of formats. Out go a folder of diffusers
(`diffusers`, settings in `diffusers_config`), one file of safetensors (`single_file`) or of ONNX or torch.export
(`onnx_file`, `traced`), each with the card (`card`) that says what it is. build/export.py joins them for ddpm-export.
"""
