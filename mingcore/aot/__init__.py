"""Kernels made ahead of time: `mingcore compile` writes a bundle, `from_pretrained(kernels=...)`
serves it.

Which kernels a model launches is not listed anywhere: the model is built on the meta device and
run, and every launch that its ops would make is taken down (`record`, `rehearse`). So the bundle
holds what the code that chooses at run time chooses, and nothing else has to be kept in step.
"""
