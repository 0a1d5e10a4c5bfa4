"""Files of weights: what opens each format, and the networks that are only known from such files.

weights.py           tensors of a safetensors file or a pickle, checked one by one; no code of a file runs
card.py              what a file does not say about itself, stated in a JSON file beside it
guided_diffusion.py  checkpoints of guided diffusion; adm.py is their network
pipeline.py          folders of diffusers; scheduler.py reads their noise schedule, patch.py is their network
ffdnet.py, drunet.py denoisers of photographs
latent_pipeline.py   latent pipelines of diffusers; their parts are autoencoder.py, text.py (prompts), conditional.py
                     (networks that take prompts) and offload.py (weights that stay on the CPU)

`cmidiff.prior.load` chooses between them.
"""
